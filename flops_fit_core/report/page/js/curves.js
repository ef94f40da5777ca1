// Training curves: held-out loss against tokens. Of many runs, a few per budget. A chosen run stands out, and so
// does the run under the pointer, drawn or not.

import { page, runById } from "./data.js";
import { draw, logAxis, lossAxis, pointerTip, LINE } from "./charts.js";
import { formatCount, formatLoss, formatScientific } from "./format.js";
import { budgetColors, palette } from "./palette.js";

const MOST_HOVER_POINTS = 20000; // more would slow the page; the points of a curve lie close to each other
let chosenRun = null;

export function chooseRun(id) {
  chosenRun = chosenRun === id ? null : id;
}

export function drawCurves(width) {
  const curves = readCurves();
  if (curves.length === 0) return null;
  const { shown, best } = page.figures.shownCurves;
  const isThinned = shown.length < curves.length;
  const [lowest, highest] = lossRange(curves.flatMap(({ points }) => points));
  const visible = curves.map(({ points }) => points.filter(({ loss }) => loss <= highest)).flat();
  const colors = budgetColors([...new Set(curves.map(({ budget }) => budget))].sort((a, b) => a - b));
  const drawn = curves.filter(({ id }) => shown.includes(id));
  const front = curves.filter(({ id }) => (chosenRun === null ? isThinned && best.includes(id) : id === chosenRun));
  const hovered = hoverPoints(chosenRun === null ? curves : front);
  const line = (chosen, options) =>
    Plot.line(chosen.flatMap(({ points }) => points), { x: "tokens", y: "loss", z: "id", clip: true, ...options });
  const stroke = ({ budget }) => colors.get(budget);
  const xAxis = logAxis(visible.map(({ tokens }) => tokens), `${page.unit} seen`, formatCount, width);
  const labels = separateLabels(budgetEnds(curves.filter(({ id }) => best.includes(id))), width, xAxis.domain, [lowest, highest]);
  const svg = draw(width, {
    label: chosenRun === null ? "Held-out loss during training" : `Held-out loss of run ${chosenRun} during training`,
    marginRight: 64,
    x: xAxis,
    y: { ...lossAxis(), domain: [lowest, highest] },
    marks: [
      chosenRun === null
        ? line(drawn, { stroke, strokeWidth: isThinned ? 0.8 : 1.3 })
        : line(drawn, { stroke: palette().grid, strokeWidth: 1 }),
      line(front, { stroke, strokeWidth: LINE + 0.4 }),
      Plot.text(labels, {
        x: "tokens", y: "loss", text: ({ budget }) => formatScientific(budget), fill: stroke,
        textAnchor: "start", dx: 6, fontWeight: 600, stroke: palette().paper, strokeWidth: 4,
      }),
      pointerTip(hovered, "tokens", "loss", ({ id, tokens, loss }) => `run ${id}\nloss ${formatLoss(loss)}\n${formatCount(tokens)} ${page.unit}`),
    ],
  });
  svg.addEventListener("input", () => highlight(svg, curves.find(({ id }) => id === svg.value?.id), highest));
  return svg;
}

function readCurves() {
  return Object.entries(page.figures.lossCurves).map(([id, { tokens, at, loss }]) => {
    const budget = runById.get(id)?.budget;
    const points = at.map((part, place) => ({ id, budget, tokens: (part / 1e4) * tokens, loss: loss[place] }));
    return { id, budget, points: points.filter((point) => point.tokens > 0) };
  }).filter(({ points }) => points.length > 0);
}

/** Without the first, highest losses, which would hide the rest. */
function lossRange(points) {
  const losses = Float64Array.from(points, ({ loss }) => loss).sort();
  return [losses[0] * 0.99, losses[Math.floor(0.98 * (losses.length - 1))]];
}

/** Points of every curve to which the label of the pointer can jump. */
function hoverPoints(curves) {
  const total = curves.reduce((sum, { points }) => sum + points.length, 0);
  const stride = Math.ceil(total / MOST_HOVER_POINTS);
  return curves.flatMap(({ points }) => points.filter((_, place) => (points.length - 1 - place) % stride === 0));
}

/** The last point of each budget's best curve, the largest budget first. */
function budgetEnds(best) {
  return best.map(({ points }) => points.at(-1)).filter(({ budget }) => budget > 0).sort((a, b) => b.budget - a.budget);
}

/** Labels that do not overlap: those of the largest and the smallest budget, and others with room. */
function separateLabels(ends, width, xDomain, yDomain) {
  const x = d3.scaleLog(xDomain, [0, width - 120]);
  const y = d3.scaleLinear(yDomain, [200, 0]); // the lowest height of a figure
  const kept = [];
  for (const end of [...ends.slice(0, 1), ...ends.slice(-1), ...ends.slice(1, -1)]) {
    const isFree = (other) => Math.abs(x(end.tokens) - x(other.tokens)) > 60 || Math.abs(y(end.loss) - y(other.loss)) > 14;
    if (kept.every(isFree)) kept.push(end);
  }
  return kept;
}

/** Draws a curve in front of all others, and removes the previous one. */
function highlight(svg, curve, highest) {
  svg.querySelector(".highlight")?.remove();
  if (curve === undefined) return;
  const { x, y } = { x: svg.scale("x"), y: svg.scale("y") };
  const path = d3.line(({ tokens }) => x.apply(tokens), ({ loss }) => y.apply(loss));
  const mark = d3.create("svg:path").attr("class", "highlight").attr("fill", "none").attr("stroke", palette().ink)
    .attr("stroke-width", LINE + 0.8).attr("d", path(curve.points.filter(({ loss }) => loss <= highest)));
  svg.insertBefore(mark.node(), svg.querySelector("[data-mark=tip]"));
}
