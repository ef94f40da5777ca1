// Residuals of the law against the distance from the optimum.

import { page, runById } from "./data.js";
import { describeRun, dotRadius, draw, logAxis, pointerTip, MANY_DOTS } from "./charts.js";
import { formatRatio } from "./format.js";
import { budgetColors, palette } from "./palette.js";

export function drawResiduals(width) {
  const residuals = page.figures.residuals;
  if (residuals === null || residuals === undefined) return null;
  const points = residuals.run.map((id, place) => ({
    id, ratio: residuals.ratio[place], percent: residuals.percent[place],
    budget: Number(residuals.budget[place].toPrecision(2)), used: residuals.used[place],
  }));
  const colors = budgetColors([...new Set(points.map(({ budget }) => budget))].sort((a, b) => a - b));
  const { ink, paper, faint } = palette();
  const { halfWidth } = residuals;
  const text = ({ id, percent }) => `${percent >= 0 ? "+" : ""}${percent.toFixed(2)}% from the law\n${describeRun(runById.get(id) ?? { id })}`;
  return draw(width, {
    label: "Relative difference of each run's loss from the law",
    x: logAxis([...points.map(({ ratio }) => ratio), 1], "N / N_opt(C)", formatRatio, width),
    y: { label: "loss relative to the law (%)", nice: true, ticks: 6 },
    marks: [
      ...(halfWidth === null ? [] : [Plot.rectY([0], { y1: -halfWidth, y2: halfWidth, fill: faint, fillOpacity: 0.14 })]),
      Plot.ruleY([0], { stroke: ink, strokeWidth: 1 }),
      Plot.ruleX([1], { stroke: faint, strokeDasharray: "2 3" }),
      Plot.dot(points, {
        x: "ratio", y: "percent", r: dotRadius(points.length), strokeWidth: points.length > MANY_DOTS ? 0.6 : 1.2,
        fill: ({ budget, used }) => (used ? colors.get(budget) : paper), stroke: ({ budget, used }) => (used ? paper : colors.get(budget)),
      }),
      pointerTip(points, "ratio", "percent", text),
    ],
  });
}
