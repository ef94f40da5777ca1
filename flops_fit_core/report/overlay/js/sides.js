// The two sides: their colours, symbols and labels. Blue and orange stay apart for colour-blind readers.

import { page } from "./data.js";
import { isDark, palette } from "./palette.js";

export const sides = page.sides;

const LIGHT_SIDES = { A: "#2458c5", B: "#b4490a" };
const DARK_SIDES = { A: "#82b1ff", B: "#ff9e52" };
const SYMBOLS = { A: "circle", B: "diamond" };
export function sideColor({ letter }) {
  return (isDark() ? DARK_SIDES : LIGHT_SIDES)[letter];
}

export function sideSymbol({ letter }) {
  return SYMBOLS[letter];
}

/** "A tiny-adamw": the label of a curve. Beyond `most` characters, the name is cut. */
export function sideLabel({ letter, name }, most = 24) {
  return most < 4 ? letter : `${letter} ${name.length > most ? `${name.slice(0, most - 1)}…` : name}`;
}

const NARROW = 420;
const LABEL_HEIGHT = 15;

/** Characters of a name next to the right end of a curve. */
function labelCharacters(width) {
  return width < NARROW ? 0 : 15;
}

/** The margin for the labels of curves. */
export function labelMargin(width) {
  const longest = Math.max(...sides.map((side) => sideLabel(side, labelCharacters(width)).length));
  return 18 + 7 * longest;
}

/** A label at the right end of each curve. curves: [{side, points: [{x, y}, ...]}], in ascending x. */
export function curveLabels(curves, width) {
  return curves.filter(({ points }) => points.length > 0).map(({ side, points }) =>
    Plot.text([points[points.length - 1]], {
      x: "x", y: "y", text: () => sideLabel(side, labelCharacters(width)), fill: sideColor(side), fontWeight: 650,
      stroke: palette().paper, strokeWidth: 5, textAnchor: "start", dx: 8,
    }));
}

/** Moves the labels of two curves apart if their ends are closer than a line of text. */
export function spreadLabels(svg, curves, width) {
  const [first, second] = curves.filter(({ points }) => points.length > 0);
  if (!second) return svg;
  const height = ({ points }) => svg.scale("y").apply(points[points.length - 1].y);
  const missing = LABEL_HEIGHT - Math.abs(height(first) - height(second));
  if (missing <= 0) return svg;
  const [upper, lower] = height(first) <= height(second) ? [first, second] : [second, first];
  for (const [curve, shift] of [[upper, -missing / 2], [lower, missing / 2]]) {
    const label = sideLabel(curve.side, labelCharacters(width));
    for (const text of svg.querySelectorAll("text")) if (text.textContent === label) text.setAttribute("dy", shift);
  }
  return svg;
}
