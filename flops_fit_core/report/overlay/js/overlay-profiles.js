// IsoFLOP profiles of both sides: loss against N, a curve per budget and side.

import { draw, logAxis, lossAxis, pointerTip, LINE, STAR } from "./charts.js";
import { formatCount, formatScientific } from "./format.js";
import { countedAs, describeSideRun, runDots } from "./overlay-optima.js";
import { palette } from "./palette.js";
import { sideColor, sideLabel, sides } from "./sides.js";

const MOST_LABELS = 16;
const BUDGET_WIDTH = 48;
const BUDGET_HEIGHT = 13;

export function drawBothProfiles(width) {
  const runs = sides.flatMap((side) => side.runs.map((run) => ({ ...run, side })));
  const curves = sides.flatMap((side) => side.profiles.map((profile) => ({ side, profile, points: profilePoints(profile) })))
    .filter(({ points }) => points.length > 1);
  if (runs.length === 0) return null;
  const { ink, paper } = palette();
  const minima = curves.filter(({ profile }) => profile.lowest);
  const sizes = [...runs.map(({ params }) => params), ...curves.flatMap(({ points }) => points.map(({ params }) => params))];
  const losses = runs.map(({ loss }) => loss);
  const margin = 0.06 * (Math.max(...losses) - Math.min(...losses));
  const lossRange = [Math.min(...losses) - margin, Math.max(...losses) + margin]; // a profile may rise far above its runs
  const height = Math.min(460, Math.max(340, width * 0.5));
  return draw(width, {
    label: "Held-out loss of A and B against parameters, a curve per training budget",
    height,
    marginRight: 64,
    x: logAxis(sizes, `N${countedAs()}`, formatCount, width),
    y: { ...lossAxis(), domain: lossRange },
    marks: [
      ...curves.map(({ side, profile, points }) =>
        Plot.line(points, {
          x: "params", y: "loss", stroke: sideColor(side), strokeWidth: LINE, strokeDasharray: profile.atEdge ? "5 4" : null, curve: "natural",
          clip: true,
        })),
      ...sides.map((side) => runDots(runs.filter((run) => run.side === side), "params", "loss", side, { r: runs.length > 150 ? 2.4 : 3.6 })),
      Plot.dot(minima, {
        x: ({ profile }) => profile.lowest[0], y: ({ profile }) => profile.lowest[1], symbol: "star", r: STAR,
        fill: ({ side, profile }) => (profile.atEdge ? paper : sideColor(side)), stroke: ink, strokeWidth: 1,
      }),
      Plot.text(budgetEnds(curves, sizes, lossRange, width, height), {
        x: "params", y: "loss", text: ({ budget }) => formatScientific(budget), fill: ({ side }) => sideColor(side), textAnchor: "start", dx: 10,
        stroke: paper, strokeWidth: 4,
      }),
      ...sideLabels(curves, runs, lossRange),
      pointerTip(runs, "params", "loss", describeSideRun),
    ],
  });
}

function profilePoints({ params, loss }) {
  return params.map((value, place) => ({ params: value, loss: loss[place] }));
}

/** The right end of each curve, for the label of its budget. A label that would cover another is left out. */
function budgetEnds(curves, sizes, lossRange, width, height) {
  const column = (params) => (width * Math.log(params / Math.min(...sizes))) / Math.log(Math.max(...sizes) / Math.min(...sizes));
  const row = (loss) => (height * (loss - lossRange[0])) / (lossRange[1] - lossRange[0]);
  const ends = curves.filter(({ profile }) => profile.budget !== null)
    .map(({ side, profile, points }) => ({ side, budget: profile.budget, ...points.findLast(({ loss }) => loss <= lossRange[1]) }))
    .filter(({ loss }) => loss !== undefined);
  const kept = [];
  for (const end of ends) {
    const covers = (other) => Math.abs(column(end.params) - column(other.params)) < BUDGET_WIDTH && Math.abs(row(end.loss) - row(other.loss)) < BUDGET_HEIGHT;
    if (kept.length < MOST_LABELS && !kept.some(covers)) kept.push(end);
  }
  return kept;
}

/** A at the left end of its highest curve, B at the right end, so that they stay apart. Without curves, at a run. */
function sideLabels(curves, runs, lossRange) {
  return sides.flatMap((side, place) => {
    const points = curves.filter((curve) => curve.side === side).map(({ points: all }) => all.filter(({ loss }) => loss <= lossRange[1]))
      .filter(({ length }) => length > 0).sort((first, second) => second[0].loss - first[0].loss)[0] ?? runs.filter((run) => run.side === side);
    if (points.length === 0) return [];
    const byParams = [...points].sort((first, second) => first.params - second.params);
    const anchor = place === 0 ? byParams[0] : byParams[byParams.length - 1];
    return [Plot.text([anchor], {
      x: "params", y: "loss", text: () => sideLabel(side), fill: sideColor(side), fontWeight: 650,
      textAnchor: place === 0 ? "start" : "end", dy: -14, stroke: palette().paper, strokeWidth: 5,
    })];
  });
}
