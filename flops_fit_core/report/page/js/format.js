// Numbers as text, by the rules of flops_fit_core/numbers.py.

const UNITS = ["", "K", "M", "B", "T"];
const NONE = "–";

/** Parameters or tokens: 950, 12.3K, 1.23B. */
export function formatCount(value) {
  if (!Number.isFinite(value)) return NONE;
  if (Math.abs(value) < 1000 && Number.isInteger(value)) return String(value);
  for (let power = 0; power < UNITS.length; power += 1) {
    const digits = threeDigits(value / 1000 ** power);
    if (Number(digits) < 1000) return digits + UNITS[power];
  }
  return formatScientific(value);
}

/** FLOPs: 4.5e18, 1e21. */
export function formatScientific(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${mantissa.replace(/\.?0+$/, "")}e${Number(exponent)}`;
}

/** Nats: 2.3456. */
export function formatLoss(value) {
  return Number.isFinite(value) ? value.toFixed(4) : NONE;
}

/** Tokens per parameter: 20.3, 0.52. */
export function formatRatio(value) {
  if (!Number.isFinite(value)) return NONE;
  return Math.abs(value) < 9999.5 ? threeDigits(value) : formatScientific(value);
}

/** How many times: 10x, 2.5x. */
export function formatFactor(value) {
  return `${value < 9999.5 ? Number(value.toPrecision(2)) : formatScientific(value)}x`;
}

export function formatSpan(low, high, show) {
  return low === null || high === null ? "" : `${show(low)} to ${show(high)}`;
}

/** One significant digit, for predictions far beyond the runs. */
export function formatRoughly(value, show) {
  return Number.isFinite(value) ? show(Number(value.toPrecision(1))) : NONE;
}

function threeDigits(value) {
  if (value === 0) return "0";
  const rounded = Math.abs(Number(value.toPrecision(3)));
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(rounded))));
}
