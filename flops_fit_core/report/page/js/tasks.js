// The accuracy of each task against the budget: runs, forecast, interval.

import { page } from "./data.js";
import { curveTip, draw, logAxis, pointerTip, LINE } from "./charts.js";
import { formatCount, formatScientific } from "./format.js";
import { palette } from "./palette.js";

const formatShare = (value) => value.toFixed(3);

/** A drawing per task: name in data-figure -> function of the width. */
export function taskDrawings() {
  return Object.fromEntries((page.tasks ?? []).map((task, place) => [`task-${place + 1}`, (width) => drawTask(task, width)]));
}

function drawTask({ name, curve: optima, runs, chance, largest }, width) {
  const { law, ink, paper, faint } = palette();
  const curve = optima.map(([flops, value, low, high]) => ({ flops, value, low, high }));
  const points = runs.map(([id, params, tokens, flops, accuracy]) => ({ id, params, tokens, flops, accuracy }));
  const describe = ({ id, params, tokens, flops, accuracy }) =>
    [`run ${id}`, `accuracy ${formatShare(accuracy)}`, `N ${formatCount(params)}`, `D ${formatCount(tokens)}`, `C ${formatScientific(flops)}`].join("\n");
  return draw(width, {
    label: `Accuracy of ${name} against the training budget`,
    x: logAxis([...curve, ...points].map(({ flops }) => flops), "C, training FLOPs", formatScientific, width),
    y: { label: "accuracy", domain: [0, 1], ticks: 5 },
    marks: [
      ...(curve[0].low === null ? [] : [Plot.areaY(curve, { x: "flops", y1: "low", y2: "high", fill: law, fillOpacity: 0.17 })]),
      ...(chance === null ? [] : [
        Plot.ruleY([chance], { stroke: faint, strokeDasharray: "2 3" }),
        Plot.text([chance], { y: (value) => value, text: () => "chance", frameAnchor: "right", textAnchor: "end", dy: 9, fill: faint }),
      ]),
      Plot.line(curve, { x: "flops", y: "value", stroke: law, strokeWidth: LINE, strokeDasharray: "5 4" }),
      Plot.line(curve.filter(({ flops }) => flops <= largest * 1.0001), { x: "flops", y: "value", stroke: law, strokeWidth: LINE + 0.6 }),
      Plot.dot(points, { x: "flops", y: "accuracy", fill: ink, stroke: paper, strokeWidth: 0.7, r: 3.6 }),
      points.length > 0 ? pointerTip(points, "flops", "accuracy", describe) : curveTip(curve, "value", ({ flops, value, low, high }) =>
        [`C ${formatScientific(flops)}`, `accuracy ${formatShare(value)}`, low === null ? "" : `${formatShare(low)} to ${formatShare(high)}`].filter(Boolean).join("\n")),
    ],
  });
}
