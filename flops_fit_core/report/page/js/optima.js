// Figures against the budget: N_opt, D_opt, tokens per parameter and the loss frontier.

import { page } from "./data.js";
import { curveTip, describeRun, draw, logAxis, lossAxis, pointerTip, LINE, STAR } from "./charts.js";
import { formatCount, formatLoss, formatRatio, formatScientific, formatSpan } from "./format.js";
import { palette } from "./palette.js";

const FITTED = 1.001; // rounding of the ends of the fitted range

export function drawOptimalParams(width) {
  return drawAgainstFlops(width, quantityCurve("params"), (minimum) => minimum.params, {
    label: "Optimal parameters against the training budget", axis: `N_opt, ${page.paramsName}`, show: formatCount,
  });
}

export function drawOptimalTokens(width) {
  return drawAgainstFlops(width, quantityCurve("tokens"), (minimum) => minimum.tokens, {
    label: `Optimal ${page.unit} against the training budget`, axis: `D_opt, ${page.unit}`, show: formatCount,
  });
}

export function drawRatio(width) {
  const curve = page.figures.curve.map(({ flops, params, tokens }) => ({
    flops,
    value: tokens[0] / params[0],
    low: params[1] === null ? null : tokens[1] / params[2],
    high: params[1] === null ? null : tokens[2] / params[1],
  }));
  return drawAgainstFlops(width, curve, (minimum) => minimum.tokens / minimum.params, {
    label: `${page.unit} per parameter against the training budget`, axis: `${page.unit} per parameter`, show: formatRatio,
  });
}

export function drawFrontier(width) {
  const curve = quantityCurve("loss");
  if (curve.length === 0) return null;
  const { law, run: grey, faint, ink } = palette();
  const runs = page.runs.filter(({ loss, flops }) => loss > 0 && flops > 0);
  const { irreducible } = page.figures;
  return draw(width, {
    label: "Lowest held-out loss against the training budget",
    x: flopsAxis([...curve, ...runs], width),
    y: lossAxis(),
    marks: [
      Plot.dot(runs, { x: "flops", y: "loss", stroke: grey, r: 2.6, strokeWidth: 1.1 }),
      ...curveMarks(curve, law),
      ...(irreducible === null ? [] : [
        Plot.ruleY([irreducible], { stroke: faint, strokeDasharray: "2 3" }),
        Plot.text([irreducible], { y: (value) => value, text: () => `irreducible loss E = ${formatLoss(irreducible)}`, frameAnchor: "right", dy: -8, fill: faint, textAnchor: "end" }),
      ]),
      Plot.dot(allMinima(), starOptions("loss", ink)),
      pointerTip(runs, "flops", "loss", describeRun),
    ],
  });
}

function quantityCurve(name) {
  return page.figures.curve.map((optimum) => {
    const [value, low, high] = optimum[name];
    return { flops: optimum.flops, value, low, high };
  });
}

function drawAgainstFlops(width, curve, quantity, { label, axis, show }) {
  if (curve.length === 0) return null;
  const { law, ink } = palette();
  const minima = allMinima().map((minimum) => ({ ...minimum, value: quantity(minimum) }));
  const values = [...curve, ...minima].flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]);
  return draw(width, {
    label,
    x: flopsAxis(curve, width),
    y: logAxis(values, axis, show, 340),
    marks: [
      ...curveMarks(curve, law),
      Plot.dot(minima, starOptions("value", ink)),
      curveTip(curve, "value", (point) =>
        [`C ${formatScientific(point.flops)}`, show(point.value), formatSpan(point.low, point.high, show)].filter(Boolean).join("\n")),
    ],
  });
}

function flopsAxis(points, width) {
  return logAxis(points.map(({ flops }) => flops), "C, training FLOPs", formatScientific, width);
}

/** The law: a band, a line through the runs, dashed beyond them. */
function curveMarks(curve, color) {
  const { grid } = palette();
  const [low, high] = page.flopsRange;
  const fitted = curve.filter(({ flops }) => flops >= low / FITTED && flops <= high * FITTED);
  return [
    Plot.rectX([0], { x1: low, x2: high, fill: grid, fillOpacity: 0.45 }),
    ...(curve[0].low === null ? [] : [Plot.areaY(curve, { x: "flops", y1: "low", y2: "high", fill: color, fillOpacity: 0.17 })]),
    Plot.line(curve, { x: "flops", y: "value", stroke: color, strokeWidth: LINE, strokeDasharray: "5 4" }),
    Plot.line(fitted, { x: "flops", y: "value", stroke: color, strokeWidth: LINE + 0.6 }),
  ];
}

function allMinima() {
  return page.figures.minima.length > 0 ? page.figures.minima : page.figures.isoflopMinima;
}

/** Minima of profiles: hollow stars, because the law does not pass through them by construction. */
function starOptions(y, ink) {
  return { x: "flops", y, symbol: "star", r: STAR - 1, stroke: ink, strokeWidth: 1.4, fill: palette().paper };
}
