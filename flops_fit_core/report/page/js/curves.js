// Training curves: held-out loss against tokens. A chosen run stands out.

import { page, runById } from "./data.js";
import { draw, logAxis, lossAxis, pointerTip, LINE } from "./charts.js";
import { formatCount, formatLoss } from "./format.js";
import { budgetColors, palette } from "./palette.js";

let chosenRun = null;

export function chooseRun(id) {
  chosenRun = chosenRun === id ? null : id;
}

export function drawCurves(width) {
  const points = Object.entries(page.figures.lossCurves).flatMap(([id, { tokens, at, loss }]) =>
    at.map((part, place) => ({ id, tokens: (part / 1e4) * tokens, loss: loss[place], budget: runById.get(id)?.budget }))
      .filter(({ tokens: seen }) => seen > 0));
  if (points.length === 0) return null;
  const shown = chosenRun === null ? points : points.filter(({ id }) => id === chosenRun);
  const colors = budgetColors([...new Set(points.map(({ budget }) => budget))].sort((a, b) => a - b));
  const { grid } = palette();
  return draw(width, {
    label: chosenRun === null ? "Held-out loss during training" : `Held-out loss of run ${chosenRun} during training`,
    x: logAxis(points.map(({ tokens }) => tokens), `${page.unit} seen`, formatCount, width),
    y: { ...lossAxis(), domain: lossRange(points) },
    clip: true,
    marks: [
      ...(chosenRun === null ? [] : [Plot.line(points, { x: "tokens", y: "loss", z: "id", stroke: grid, strokeWidth: 1, clip: true })]),
      Plot.line(shown, { x: "tokens", y: "loss", z: "id", stroke: ({ budget }) => colors.get(budget), strokeWidth: chosenRun === null ? 1.3 : LINE, clip: true }),
      pointerTip(shown, "tokens", "loss", ({ id, tokens, loss }) => `run ${id}\nloss ${formatLoss(loss)}\n${formatCount(tokens)} ${page.unit}`),
    ],
  });
}

/** Without the first, highest losses, which would hide the rest. */
function lossRange(points) {
  const losses = points.map(({ loss }) => loss).sort((a, b) => a - b);
  return [losses[0] * 0.99, losses[Math.floor(0.98 * (losses.length - 1))]];
}
