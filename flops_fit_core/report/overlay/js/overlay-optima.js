// Both laws against the budget: N_opt, D_opt, tokens per parameter, the loss frontier, and the gain of B over A.

import { page } from "./data.js";
import { curveTip, describeRun, draw, logAxis, lossAxis, pointerTip, LINE } from "./charts.js";
import { formatCount, formatLoss, formatRatio, formatScientific, formatSpan } from "./format.js";
import { palette } from "./palette.js";
import { curveLabels, labelMargin, sideColor, sideLabel, sides, sideSymbol, spreadLabels } from "./sides.js";

const FITTED = 1.001; // rounding of the ends of the fitted range

export function drawBothParams(width) {
  return drawBoth(width, (optimum) => triple(optimum.params), {
    label: "Optimal parameters of A and B against the training budget", axis: `N_opt${countedAs()}`, show: formatCount,
  });
}

export function drawBothTokens(width) {
  return drawBoth(width, (optimum) => triple(optimum.tokens), {
    label: `Optimal ${page.unit} of A and B against the training budget`, axis: `D_opt, ${page.unit}`, show: formatCount,
  });
}

export function drawBothRatios(width) {
  const quantity = ({ params, tokens }) => ({
    value: tokens[0] / params[0],
    low: params[1] === null ? null : tokens[1] / params[2],
    high: params[1] === null ? null : tokens[2] / params[1],
  });
  return drawBoth(width, quantity, {
    label: `${page.unit} per parameter of A and B against the training budget`, axis: `${page.unit} per parameter`, show: formatRatio,
  });
}

export function drawBothFrontiers(width) {
  const runs = sides.flatMap((side) => side.runs.map((run) => ({ ...run, side })));
  const dots = sides.map((side) => runDots(runs.filter((run) => run.side === side), "flops", "loss", side));
  return drawBoth(width, (optimum) => triple(optimum.loss), {
    label: "Lowest held-out loss of A and B against the training budget", show: formatLoss, y: lossAxis(),
    marks: [...dots, pointerTip(runs, "flops", "loss", describeSideRun)], flops: runs.map(({ flops }) => flops),
  });
}

export function drawGain(width) {
  if (!page.gain) return null;
  const { ink, faint } = palette();
  const [, second] = sides;
  const curve = page.gain.curve.map(([flops, value, low, high]) => ({ flops, value, low, high }));
  const points = page.gain.points.map(([flops, value, low, high]) => ({ flops, value, low, high }));
  const all = [...curve, ...points];
  const values = all.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]);
  const color = sideColor(second);
  return draw(width, {
    label: "Compute-equivalent gain of B over A against the budget of B",
    x: logAxis(all.flatMap(({ flops }) => [flops / 1.02, flops * 1.02]), "C of B, training FLOPs", formatScientific, width),
    y: logAxis([...values, 1], "gain of B over A", formatRatio, 340),
    marks: [
      ...(curve.length > 1 ? [
        Plot.areaY(curve, { x: "flops", y1: "low", y2: "high", fill: color, fillOpacity: 0.17 }),
        Plot.line(curve, { x: "flops", y: "value", stroke: color, strokeWidth: LINE + 0.6 }),
      ] : []),
      Plot.ruleY([1], { stroke: ink, strokeDasharray: "2 3" }),
      Plot.text([1], {
        y: (value) => value, text: () => "no gain", frameAnchor: "right", textAnchor: "end", dy: -9, fill: faint,
        stroke: palette().paper, strokeWidth: 4,
      }),
      Plot.ruleX(points.filter(({ low }) => low !== null), { x: "flops", y1: "low", y2: "high", stroke: color, strokeWidth: LINE }),
      Plot.dot(points, { x: "flops", y: "value", fill: color, r: 5, symbol: sideSymbol(second) }),
      curveTip(all, "value", ({ flops, value, low, high }) =>
        [`C ${formatScientific(flops)}`, `gain ${formatRatio(value)}`, formatSpan(low, high, formatRatio)].filter(Boolean).join("\n")),
    ],
  });
}

/** The definition of N if both sides have the same. */
export function countedAs() {
  const [first, second] = sides;
  return first.paramsName === second.paramsName ? `, ${first.paramsName}` : "";
}

function triple([value, low, high]) {
  return { value, low, high };
}

export function describeSideRun(run) {
  return `${sideLabel(run.side)}\n${describeRun(run)}`;
}

export function runDots(runs, x, y, side, { r = 2.8 } = {}) {
  return Plot.dot(runs, { x, y, stroke: sideColor(side), symbol: sideSymbol(side), r, strokeWidth: 1.1 });
}

function drawBoth(width, quantity, { label, axis, show, y = null, marks = [], flops = [] }) {
  const curves = sides.map((side) => ({ side, points: side.curve.map((optimum) => ({ flops: optimum.flops, ...quantity(optimum) })) }));
  const points = curves.flatMap((curve) => curve.points);
  if (points.length === 0) return null;
  const values = points.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]);
  const labelled = curves.map((curve) => ({ side: curve.side, points: curve.points.map((point) => ({ x: point.flops, y: point.value })) }));
  const svg = draw(width, {
    label,
    marginRight: labelMargin(width),
    x: logAxis([...points.map((point) => point.flops), ...flops], "C, training FLOPs", formatScientific, width),
    y: y ?? logAxis(values, axis, show, 340),
    marks: [
      ...curves.flatMap(({ side, points: curve }) => sideMarks(side, curve)),
      ...marks,
      ...curveLabels(labelled, width),
      ...(marks.length > 0 ? [] : [curveTip(bothByBudget(curves), "value", (point) => describeBoth(point, show))]),
    ],
  });
  return spreadLabels(svg, labelled, width);
}

/** A law: a band, a solid line through its runs, dashed beyond them. */
function sideMarks(side, curve) {
  if (curve.length === 0) return [];
  const color = sideColor(side);
  const [low, high] = side.flopsRange;
  const fitted = curve.filter(({ flops }) => flops >= low / FITTED && flops <= high * FITTED);
  return [
    ...(curve[0].low === null ? [] : [Plot.areaY(curve, { x: "flops", y1: "low", y2: "high", fill: color, fillOpacity: 0.14 })]),
    Plot.line(curve, { x: "flops", y: "value", stroke: color, strokeWidth: LINE, strokeDasharray: "5 4" }),
    Plot.line(fitted, { x: "flops", y: "value", stroke: color, strokeWidth: LINE + 0.6 }),
  ];
}

/** A point per budget with the values of both sides; a side without the budget is missing. */
function bothByBudget(curves) {
  const points = new Map();
  for (const { side, points: curve } of curves) {
    for (const point of curve) {
      const both = points.get(point.flops) ?? { flops: point.flops, value: point.value, entries: [] };
      both.entries.push({ side, ...point });
      points.set(point.flops, both);
    }
  }
  return [...points.values()].sort((first, second) => first.flops - second.flops);
}

function describeBoth({ flops, entries }, show) {
  const lines = entries.map(({ side, value, low, high }) => {
    const span = formatSpan(low, high, show);
    return `${side.letter} ${show(value)}${span ? ` (${span})` : ""}`;
  });
  return [`C ${formatScientific(flops)}`, ...lines].join("\n");
}
