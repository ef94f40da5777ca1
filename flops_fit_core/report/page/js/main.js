// Starts the page.

import { startBudgetForm } from "./budget.js";
import { chooseRun, drawCurves } from "./curves.js";
import { drawFigure, startGallery } from "./gallery.js";
import { drawFrontier, drawOptimalParams, drawOptimalTokens, drawRatio } from "./optima.js";
import { drawProfiles } from "./profiles.js";
import { drawResiduals } from "./residuals.js";
import { startRunTable } from "./table.js";
import { taskDrawings } from "./tasks.js";

const FIGURES = {
  profiles: drawProfiles, params: drawOptimalParams, tokens: drawOptimalTokens, frontier: drawFrontier,
  ratio: drawRatio, residuals: drawResiduals, curves: drawCurves,
};

function showCurve(id) {
  const figure = document.getElementById("figure-curves");
  chooseRun(id);
  drawFigure(figure);
  figure.scrollIntoView({ block: "center" });
}

function startCitation() {
  const button = document.getElementById("copy-citation");
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = document.getElementById("citation");
    const range = document.createRange();
    range.selectNodeContents(text);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    navigator.clipboard?.writeText(text.textContent).then(() => (button.textContent = "Copied"));
  });
}

/** Paper has no button that opens details. Errors stay closed: many differ in numbers only. */
function openDetailsOnPaper() {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.quiet:not([open])")];
    for (const details of opened) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
}

startBudgetForm();
startGallery({ ...FIGURES, ...taskDrawings() });
startRunTable(showCurve);
openDetailsOnPaper();
startCitation();
