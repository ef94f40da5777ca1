// The budget field: shows the prediction for the reader's budget.

import { page } from "./data.js";
import { formatCount, formatFactor, formatLoss, formatRatio, formatScientific, formatSpan, roughly } from "./format.js";
import { largestServing, predict } from "./grid.js";

const SECONDS_PER_DAY = 86400;
const CAUTION = 10.01; // times the largest budget of the runs
const FAR = 101; // beyond it, only the order of magnitude is shown

const field = (name) => document.getElementById(`budget-${name}`);

export function startBudgetForm() {
  const form = document.getElementById("budget-form");
  if (!form || !page.grid) return;
  form.hidden = false;
  const device = field("device");
  if (device) {
    device.value = "h100" in page.peaks ? "h100" : device.options[0].value;
    setPeak(device.value);
    device.addEventListener("change", () => setPeak(device.value));
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const event of ["input", "change"]) form.addEventListener(event, () => update(form));
  update(form);
}

function setPeak(name) {
  if (page.peaks[name]) field("peak").value = formatScientific(page.peaks[name]);
}

function update(form) {
  const mode = form.elements.mode.value;
  for (const label of form.querySelectorAll("[data-mode]")) label.hidden = label.dataset.mode !== mode;
  const flops = mode === "flops" ? readNumber("flops") : readDeviceFlops();
  const serving = field("serving") ? readNumber("serving", { zero: true }) : 0;
  if (flops === null || serving === null) return;
  const prediction = predict(page.grid, flops, serving);
  if (prediction === null) showOutside(flops, serving);
  else showPrediction(prediction, mode);
}

function readDeviceFlops() {
  const values = ["devices", "days", "peak", "mfu"].map((name) => readNumber(name));
  if (values.includes(null)) return null;
  const [devices, days, peak, mfu] = values;
  if (mfu > 1) {
    setMessage("The utilisation is a share of the peak, between 0 and 1: write 0.4 for 40%.", field("mfu"));
    return null;
  }
  return devices * days * SECONDS_PER_DAY * peak * mfu;
}

/** The number in a field; null, with a message, if it is none. Accepts 1e21, 3.5B and 1,000. */
function readNumber(name, { zero = false } = {}) {
  const input = field(name);
  const value = parseNumber(input.value);
  const isValid = Number.isFinite(value) && (zero ? value >= 0 : value > 0);
  input.setAttribute("aria-invalid", String(!isValid));
  if (isValid) return value;
  setMessage(`“${input.value}” is not a ${zero ? "" : "positive "}number: write for example 1e21 or 3.5B.`, input);
  return null;
}

export function parseNumber(text) {
  const match = /^([0-9.,]*\.?[0-9]+(?:e[+-]?[0-9]+)?)([KMBT]?)$/i.exec(text.trim().replaceAll(/[\s_]/g, ""));
  if (!match) return NaN;
  const scale = { "": 1, K: 1e3, M: 1e6, B: 1e9, T: 1e12 }[match[2].toUpperCase()];
  return Number(match[1].replaceAll(",", "")) * scale;
}

function setMessage(text, input = null) {
  field("message").textContent = text;
  field("message").classList.toggle("invalid", input !== null);
}

function showPrediction(prediction, mode) {
  const { flops, params, tokens, loss, servingTokens } = prediction;
  const factor = flops / page.flopsRange[1];
  const sentence = document.getElementById("answer-sentence");
  const served = servingTokens > 0 ? ` and ${formatCount(servingTokens)} ${page.unit} served` : "";
  const training = servingTokens > 0 ? " FLOPs of training" : " training FLOPs";
  const show = factor > FAR ? (value) => `about ${formatCount(value, 1)}` : (value) => formatCount(value);
  sentence.replaceChildren(
    "For ", strong(formatScientific(flops)), `${training}${served}, train `,
    strong(`${show(params.value)} parameters`), " on ", strong(`${show(tokens.value)} ${page.unit}`), ".",
  );
  setTile("params", params, formatCount, factor);
  setTile("tokens", tokens, formatCount, factor);
  setTile("ratio", { value: tokens.value / params.value, low: null, high: null }, formatRatio, factor);
  setTile("loss", loss, formatLoss, factor);
  const remark = document.getElementById("answer-remark");
  remark.textContent = describeDistance(factor, params.value);
  remark.classList.toggle("caution", factor > CAUTION);
  setMessage(mode === "devices" ? `These devices give ${formatScientific(flops)} FLOPs.` : "");
  document.documentElement.dataset.prediction = JSON.stringify(prediction);
}

function strong(text) {
  const element = document.createElement("strong");
  element.textContent = text;
  return element;
}

/** Far beyond the runs, the interval comes first and the value has one digit. */
function setTile(name, estimate, show, factor) {
  const tile = document.querySelector(`[data-tile="${name}"]`);
  const isFar = factor > FAR;
  const format = isFar ? roughly(show) : (value) => show(value);
  const span = formatSpan(estimate.low, estimate.high, format);
  const rough = `about ${format(estimate.value)}`;
  tile.querySelector(".value").textContent = isFar ? span || rough : format(estimate.value);
  tile.querySelector(".interval").textContent = isFar && span ? rough : span;
  tile.classList.toggle("far", isFar);
}

function describeDistance(factor, params) {
  const parts = [];
  if (factor > 1.01) {
    const caution = factor > FAR ? ": an order of magnitude, not a plan" : "";
    parts.push(`${formatFactor(factor)} beyond the largest budget of the runs${caution}.`);
  } else if (page.flopsRange[0] / (factor * page.flopsRange[1]) > 1.01) {
    parts.push(`Below the smallest budget of the runs, ${formatScientific(page.flopsRange[0])} FLOPs.`);
  } else {
    parts.push("Within the budgets of the runs.");
  }
  const [low, high] = page.paramsRange ?? [0, Infinity];
  if (params < low) parts.push(`N lies below the trained sizes, ${formatCount(low)} to ${formatCount(high)}.`);
  if (params > high) parts.push(`N lies above the trained sizes, ${formatCount(low)} to ${formatCount(high)}.`);
  return parts.join(" ");
}

function showOutside(flops, serving) {
  const { grid } = page;
  const [low, high] = [grid.flops[0], grid.flops[grid.flops.length - 1]];
  const inside = flops >= low && flops <= high;
  const range = inside
    ? `At this budget, this page covers up to ${formatCount(largestServing(grid, flops))} ${page.unit} served.`
    : `This page covers ${formatScientific(low)} to ${formatScientific(high)} FLOPs.`;
  const option = serving > 0 ? ` --inference-tokens ${formatScientific(serving, 4)}` : "";
  const command = document.createElement("code");
  command.textContent = `flops-fit predict ${page.source || "STUDY"} --flops ${formatScientific(flops, 6)}${option}`;
  setMessage("");
  field("message").classList.add("invalid");
  field("message").append(range, " Type ", command);
  delete document.documentElement.dataset.prediction;
}
