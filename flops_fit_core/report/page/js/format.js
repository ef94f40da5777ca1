// Numbers as text, by the rules of flops_fit_core/numbers.py.

const UNITS = ["", "K", "M", "B", "T"];
const NONE = "–";

/** Parameters or tokens: 950, 12.3K, 1.23B; with one digit 1B. */
export function formatCount(value, digits = 3) {
  if (!Number.isFinite(value)) return NONE;
  if (Math.abs(value) < 1000 && Number.isInteger(value)) return String(digits < 3 ? Number(value.toPrecision(digits)) : value);
  for (let power = 0; power < UNITS.length; power += 1) {
    const text = significant(value / 1000 ** power, digits);
    if (Number(text) < 1000) return text + UNITS[power];
  }
  return formatScientific(value, digits);
}

/** FLOPs: 4.5e18, 1e21. */
export function formatScientific(value, digits = 3) {
  if (!Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa}e${Number(exponent)}`;
}

/** Nats: 2.3456; with one digit 2.3. */
export function formatLoss(value, digits = 4) {
  return Number.isFinite(value) ? value.toFixed(digits) : NONE;
}

/** Tokens per parameter: 20.3, 0.52. */
export function formatRatio(value, digits = 3) {
  if (!Number.isFinite(value)) return NONE;
  return Math.abs(value) < 9999.5 ? significant(value, digits) : formatScientific(value, digits);
}

/** How many times: 10x, 2.5x. */
export function formatFactor(value) {
  return `${value < 9999.5 ? Number(value.toPrecision(2)) : formatScientific(value)}x`;
}

export function formatSpan(low, high, show) {
  return low === null || high === null ? "" : `${show(low)} to ${show(high)}`;
}

/** The format with one digit, for predictions far beyond the runs. */
export function roughly(show) {
  return (value) => show(value, 1);
}

function significant(value, digits) {
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(digits));
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(rounded))));
  return (digits >= 3 ? value : rounded).toFixed(decimals); // 1234 keeps its digits
}
