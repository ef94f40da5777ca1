// Starts the page of two sides.

import { startGallery } from "./gallery.js";
import { drawBothFrontiers, drawBothParams, drawBothRatios, drawBothTokens, drawGain } from "./overlay-optima.js";
import { drawBothProfiles } from "./overlay-profiles.js";

startGallery({
  gain: drawGain, params: drawBothParams, tokens: drawBothTokens, frontier: drawBothFrontiers, ratio: drawBothRatios,
  profiles: drawBothProfiles,
});
