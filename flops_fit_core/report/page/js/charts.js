// What all figures share: size, axes, the label that follows the pointer.

import { page } from "./data.js";
import { formatCount, formatLoss, formatScientific } from "./format.js";
import { palette } from "./palette.js";

export const LINE = 1.8;
export const STAR = 6;
export const MANY_DOTS = 150;
/** Smaller dots if many would hide each other. */
export function dotRadius(count) {
  return count > MANY_DOTS ? 2.6 : 4;
}

/** A figure of Observable Plot in the page's font and colours. */
export function draw(width, { label, height = Math.min(340, Math.max(250, 0.8 * width)), marks, ...options }) {
  const { ink } = palette();
  const isNarrow = width < 420;
  const svg = Plot.plot({
    width,
    height,
    marginLeft: isNarrow ? 46 : 58,
    marginRight: isNarrow ? 18 : 28,
    marginTop: 28,
    marginBottom: 44,
    ariaLabel: label,
    style: { fontFamily: "inherit", fontSize: "12px", color: ink, background: "none", overflow: "visible" },
    marks: [...gridLines(options), ...logAxes(options), ...marks],
    ...options,
  });
  nameWholeFigureOnly(svg);
  svg.addEventListener("input", () => nameWholeFigureOnly(svg)); // the label of the pointer is drawn anew
  return svg;
}

function gridLines({ x, y }) {
  const style = { stroke: palette().grid, strokeOpacity: 1 };
  const lines = (mark, { ticks }) => (Array.isArray(ticks) ? mark(ticks, style) : mark({ ...style, ticks }));
  return [lines(Plot.gridX, x), lines(Plot.gridY, y)];
}

/** Plot leaves out labels of a logarithmic axis that has more than a few, unless they are texts of a mark. */
function logAxes({ x, y }) {
  const axis = (mark, { ticks, showTick }) => (showTick ? [mark(ticks, { text: showTick })] : []);
  return [...axis(Plot.axisX, x), ...axis(Plot.axisY, y)];
}

/** The figure has a name; names of its parts ("line", "dot") would only be noise for a screen reader. */
function nameWholeFigureOnly(svg) {
  for (const part of svg.querySelectorAll("[aria-label]")) {
    part.dataset.mark = part.getAttribute("aria-label");
    part.removeAttribute("aria-label");
  }
  svg.setAttribute("role", "img");
}

/** A logarithmic axis with round ticks, and room at both ends. */
export function logAxis(values, label, show, width) {
  const finite = values.filter((value) => value > 0 && Number.isFinite(value));
  const [low, high] = d3.extent(finite); // Math.min(...finite) fails for more than 100,000 values
  const margin = Math.max((high / low) ** 0.04, 1.05);
  const domain = [low / margin, high * margin];
  return { type: "log", domain, label, ticks: logTicks(domain, Math.max(3, Math.floor(width / 85))), showTick: (value) => shortTick(show(value)) };
}

/** 50.0K -> 50K. */
function shortTick(text) {
  return text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
}

/** Ticks at 1, 2 and 5, at 1 and 3, or at decades, whichever fits; equal steps within a short range. */
function logTicks([low, high], most) {
  if (high / low < 6) return d3.ticks(low, high, 4);
  for (const [steps, stride] of [[[1, 2, 5], 1], [[1, 3], 1], [[1], 1], [[1], 2], [[1], 3], [[1], 5]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      if (((power % stride) + stride) % stride !== 0) continue;
      ticks.push(...steps.map((step) => step * 10 ** power).filter((tick) => tick >= low && tick <= high));
    }
    if (ticks.length <= most) return ticks;
  }
  return [];
}

export function lossAxis() {
  return { label: `held-out loss (nats per ${page.unit.replace(/s$/, "")})`, nice: true, ticks: 6 };
}

/** The label of the nearest point; `lines` returns its text. */
export function pointerTip(points, x, y, lines) {
  return Plot.tip(points, Plot.pointer({ x, y, title: lines, fontSize: 12, lineHeight: 1.3, textPadding: 9, maxRadius: 30 }));
}

/** The label of the nearest budget on a curve. */
export function curveTip(points, y, lines) {
  return Plot.tip(points, Plot.pointerX({ x: "flops", y, title: lines, fontSize: 12, lineHeight: 1.3, textPadding: 9 }));
}

export function describeRun(run) {
  const loss = run.loss === null || run.loss === undefined ? run.status : `loss ${formatLoss(run.loss)}`;
  return [
    `run ${run.id}`,
    loss,
    `N ${formatCount(run.params)}`,
    `D ${formatCount(run.tokens ?? NaN)}`,
    `C ${formatScientific(run.flops ?? run.budget ?? NaN)}`,
  ].join("\n");
}
