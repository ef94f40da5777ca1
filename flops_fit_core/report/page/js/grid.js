// Predictions by interpolation of the grid that Python computed. There is no law here.

const QUANTITIES = ["params", "tokens", "loss"];

/**
 * The optimum of a budget, with the ends of its intervals, or null outside the grid.
 * servingTokens: tokens of inference that the budget pays for, too.
 */
export function predict(grid, flops, servingTokens = 0) {
  const lnFlops = grid.flops.map(Math.log);
  const at = Math.log(flops);
  if (!(at >= lnFlops[0] - 1e-9 && at <= lnFlops[lnFlops.length - 1] + 1e-9)) return null;
  const trained = Math.exp(interpolate(lnFlops, grid.tokens[0].map(Math.log), at));
  const ratio = servingTokens / trained;
  if (ratio > grid.ratios[grid.ratios.length - 1]) return null;
  const prediction = { flops, servingTokens };
  for (const name of QUANTITIES) {
    const [value, low, high] = ["", "_low", "_high"].map((end) => readTable(grid, grid[name + end], lnFlops, at, ratio));
    prediction[name] = { value, low, high };
  }
  return prediction;
}

/** The largest number of tokens to serve that the grid has at a budget. */
export function largestServing(grid, flops) {
  const trained = interpolate(grid.flops.map(Math.log), grid.tokens[0].map(Math.log), Math.log(flops));
  return Math.exp(trained) * grid.ratios[grid.ratios.length - 1];
}

function readTable(grid, table, lnFlops, at, ratio) {
  if (table[0][0] === null) return null;
  const columns = table.map((row) => interpolate(lnFlops, row.map(Math.log), at));
  return Math.exp(alongRatios(grid.ratios, columns, ratio));
}

/** Linear in the ratio below its first positive node, cubic in its logarithm above. */
function alongRatios(ratios, values, ratio) {
  if (ratio === 0 || ratios.length === 1) return values[0];
  if (ratio < ratios[1]) return values[0] + ((values[1] - values[0]) * ratio) / ratios[1];
  return interpolate(ratios.slice(1).map(Math.log), values.slice(1), Math.log(ratio));
}

/** The cubic through the four nodes around x (Lagrange), of nodes in ascending order. */
export function interpolate(nodes, values, x) {
  const size = Math.min(4, nodes.length);
  const next = nodes.findIndex((node) => node >= x);
  const right = next < 0 ? nodes.length - 1 : Math.max(1, next);
  const first = Math.max(0, Math.min(right - Math.floor(size / 2), nodes.length - size));
  let sum = 0;
  for (let i = first; i < first + size; i += 1) {
    let weight = values[i];
    for (let j = first; j < first + size; j += 1) {
      if (j !== i) weight *= (x - nodes[j]) / (nodes[i] - nodes[j]);
    }
    sum += weight;
  }
  return sum;
}
