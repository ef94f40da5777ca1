// IsoFLOP profiles: loss against N, a curve per budget.

import { page, runById } from "./data.js";
import { describeRun, dotRadius, draw, logAxis, lossAxis, pointerTip, LINE, STAR } from "./charts.js";
import { formatCount, formatScientific } from "./format.js";
import { budgetColors, palette } from "./palette.js";

const MOST_LABELS = 12;

export function drawProfiles(width) {
  const profiles = page.figures.profiles;
  const runs = profiles.flatMap(({ budget, runs: ids }) => ids.map((id) => ({ ...runById.get(id), group: budget })));
  if (runs.length === 0 && profiles.length === 0) return null;
  const budgets = profiles.map(({ budget }) => budget).filter((budget) => budget !== null);
  const colors = budgetColors(budgets);
  const { ink, paper, run: grey } = palette();
  const color = (budget) => colors.get(budget) ?? grey;
  const lines = profiles.map(profilePoints).filter((points) => points.length > 1);
  const minima = profiles.filter(({ lowest }) => lowest);
  const sizes = [...runs.map(({ params }) => params), ...lines.flat().map(({ params }) => params)];
  return draw(width, {
    label: "Held-out loss against parameters, a curve per training budget",
    height: Math.min(440, Math.max(320, width * 0.5)),
    marginRight: 64,
    x: logAxis(sizes, `N, ${page.paramsName}`, formatCount, width),
    y: lossAxis(),
    marks: [
      ...lines.map((points) =>
        Plot.line(points, {
          x: "params", y: "loss", stroke: color(points[0].budget), strokeWidth: LINE,
          strokeDasharray: points[0].atEdge ? "5 4" : null, curve: "natural",
        })),
      Plot.dot(runs, { x: "params", y: "loss", fill: (run) => color(run.group), stroke: paper, strokeWidth: 0.7, r: dotRadius(runs.length) }),
      Plot.dot(minima, {
        x: (item) => item.lowest[0], y: (item) => item.lowest[1], symbol: "star", r: STAR,
        fill: (item) => (item.atEdge ? paper : color(item.budget)), stroke: (item) => (item.atEdge ? color(item.budget) : ink), strokeWidth: 1.2,
      }),
      Plot.text(labelledEnds(profiles, runs), {
        x: "params", y: "loss", text: (end) => formatScientific(end.budget), fill: (end) => color(end.budget),
        textAnchor: "start", dx: 12, fontWeight: 600, stroke: paper, strokeWidth: 4,
      }),
      pointerTip(runs, "params", "loss", describeRun),
    ],
  });
}

function profilePoints({ budget, params, loss, atEdge }) {
  return params.map((value, place) => ({ budget, atEdge, params: value, loss: loss[place] }));
}

/** The right end of each budget, for its label. With many budgets, some have none. */
function labelledEnds(profiles, runs) {
  const ends = [];
  for (const profile of profiles.filter(({ budget }) => budget !== null)) {
    const points = profilePoints(profile);
    const own = runs.filter(({ group }) => group === profile.budget);
    const line = points.length > 1 ? points : own;
    if (line.length === 0) continue;
    const { loss } = line.reduce((a, b) => (b.params > a.params ? b : a));
    const params = [...line, ...own].reduce((largest, point) => Math.max(largest, point.params), 0); // right of the runs
    ends.push({ params, loss, budget: profile.budget });
  }
  const stride = Math.ceil(ends.length / MOST_LABELS);
  return ends.filter((_, place) => (ends.length - 1 - place) % stride === 0);
}
