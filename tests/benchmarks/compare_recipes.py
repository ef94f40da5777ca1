"""Coverage, false promotions and power of ``flops-fit compare`` on simulated pairs of studies.

    python tests/benchmarks/compare_recipes.py [--studies 300] [--quick] [--table coverage|power] [--only PATTERN]

Recipe B needs 1 / g of the compute of recipe A. Study i of a cell uses ``numpy.random.default_rng([cell, i])``
with the number of the cell. All gains are at the largest budget.

Columns: the share of studies in which the nominal 90% interval holds the gain, lies above it and lies below it;
the median width of the interval in ln g; the share of studies that promote B with a gate of 1.00 and of 1.02.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))

from surfaces import CHINCHILLA

from flops_fit_core import Observation
from flops_fit_core.fitting import compare


@dataclass(frozen=True)
class Cell:
    """A design, a noise and a true gain."""

    name: str
    budgets: int = 4
    offsets: tuple[float, ...] = (1.0,)
    """N / N_opt of the sizes at each budget."""
    seeds: int = 2
    noise: float = 0.003
    gain: float = 1.0
    """True gain at the largest budget."""
    change: float = 0.0
    """The gain is proportional to C to this power."""
    exponents: bool = False
    """Whether the exponents of B are those of A times 1 + change; otherwise the gain depends on C alone."""
    tokens_only: bool = False
    """Whether B needs fewer tokens, instead of fewer tokens and parameters."""
    paired: float | None = None
    """Share of the noise common to equal N, D and seed of A and B; None for different seeds."""
    shift: float = 0.0
    """ln of the ratio of the sizes of B to those of A."""
    decay: float = 0.0
    """Noise is proportional to C to minus this power."""
    skaling: bool = False
    """L = 1.4 + 2.3 (n^-1.1 + d^-1.1)^.3 instead of Chinchilla's form, with n and d in units of the centre."""
    outlier: float = 0.0
    """Relative error of one run of B."""

    @property
    def flops(self):
        return 1e18 * 4.0 ** np.arange(self.budgets)

    def loss(self, params, tokens, second):
        """Loss of recipe A or B, without noise."""
        centre = np.exp(np.log(self.flops).mean())
        n_0, d_0 = CHINCHILLA.n_opt(centre), CHINCHILLA.d_opt(centre)
        if second:
            at_centre = np.log(self.gain) - self.change * np.log(self.flops[-1] / centre)
            u, v = np.log(params / n_0), np.log(tokens / d_0)
            width = self.change if self.exponents else 0.0
            ln_gain, ln_ratio = at_centre + self.change * (u + v), width * (u - v)
            ln_ratio -= ln_gain if self.tokens_only else 0.0
            params = params * np.exp((ln_gain + ln_ratio) / 2)
            tokens = tokens * np.exp((ln_gain - ln_ratio) / 2)
        if self.skaling:
            return 1.4 + 2.3 * ((params / n_0) ** -1.1 + (tokens / d_0) ** -1.1) ** 0.3
        return CHINCHILLA.loss(params, tokens)

    def simulate(self, random):
        """The runs of A and of B."""
        recipes = [], []
        centre = np.exp(np.log(self.flops).mean())
        share = self.paired or 0.0
        for budget in self.flops:
            for offset in self.offsets:
                for seed in range(self.seeds):
                    common = random.standard_normal()
                    for second, runs in enumerate(recipes):
                        error = np.sqrt(share) * common + np.sqrt(1 - share) * random.standard_normal()
                        params = CHINCHILLA.n_opt(budget) * offset * np.exp(second * self.shift)
                        tokens = budget / (6 * params)
                        noise = self.noise * (budget / centre) ** -self.decay * error
                        runs.append(
                            Observation(
                                id=f"{budget:.0e}/{offset}/{seed}",
                                params=params,
                                tokens=tokens,
                                flops=budget,
                                loss=self.loss(params, tokens, second) * np.exp(noise),
                                seed=seed if self.paired is not None else seed + 100 * second,
                            )
                        )
        if self.outlier:
            row = random.integers(len(recipes[1]))
            run = recipes[1][row]
            recipes[1][row] = run.model_copy(update={"loss": run.loss * (1 + self.outlier)})
        return recipes


GATES = (1.0, 1.02)
PROFILE = (0.35, 0.6, 1.0, 1.7, 2.8)
TINY = {"budgets": 3, "seeds": 1}
GRID = {"offsets": PROFILE, "seeds": 1, "gain": 1.3}
OTHER_GRID = {**GRID, "shift": 0.4}
COVERAGE = [
    Cell("3 sizes x 1 seed", **TINY, gain=1.02),
    Cell("3 sizes x 1 seed, 1% noise", **TINY, gain=1.3, noise=0.01),
    Cell("3 sizes x 2 seeds, equal seeds, unpaired noise", budgets=3, paired=0.0),
    Cell("4 sizes x 2 seeds, half of the noise paired", gain=1.02, paired=0.5),
    Cell("5 sizes x 3 seeds", budgets=5, seeds=3, gain=1.3),
    Cell("4 sizes x 2 seeds, gain falls with C", gain=1.0, change=-0.05, noise=0.001),
    Cell("4 sizes x 2 seeds, gain grows with C", gain=1.6, change=0.1),
    Cell("4 sizes x 2 seeds, other exponents", gain=1.6, change=0.1, exponents=True),
    Cell("4 budgets x 5 sizes", **{**GRID, "gain": 1.02}),
    Cell("4 budgets x 5 sizes, half of the noise paired", **GRID, paired=0.5),
    Cell("4 budgets x 5 sizes, other grid", **OTHER_GRID),
    Cell("4 budgets x 5 sizes, other grid, exponents", **{**OTHER_GRID, "gain": 1.6}, change=0.1, exponents=True),
    Cell("4 budgets x 5 sizes, other grid, Skaling", **OTHER_GRID, skaling=True, noise=0.001),
    Cell("4 sizes x 2 seeds, Skaling", gain=1.3, skaling=True, noise=0.001),
    Cell("4 sizes x 2 seeds, small models noisier", gain=1.3, decay=0.25),
    Cell("4 sizes x 2 seeds, one outlier of 2%", gain=1.05, outlier=0.02, noise=0.001),
    Cell("1 budget x 4 sizes x 2 seeds", budgets=1, offsets=(0.3, 0.6, 1.0, 1.7), gain=1.1),
    Cell(
        "3 budgets x 3 sizes x 2 seeds, gain in D alone",
        budgets=3,
        offsets=(0.35, 0.6, 1.0),
        gain=1.7,
        noise=0.01,
        tokens_only=True,
    ),
]
NOISES = (0.0003, 0.001, 0.003, 0.01)
GAINS = (1.0, 1.05, 1.1)


def measure(cell, studies, number):
    """One row per study: low, high, lower bound, smallest detectable gain. A gain without an interval is NaN."""
    return np.array([measure_study(cell, number, study) for study in range(studies)])


def measure_study(cell, number, study):
    first, second = cell.simulate(np.random.default_rng([number, study]))
    item = compare(first, second, [cell.flops[-1]]).gains[0]
    if item.lower is None:
        return [np.nan] * 4
    return [item.gain.low, item.gain.high, item.lower, item.smallest_detectable]


def describe(cell, rows):
    """Coverage, errors on both sides, width, and the share of promotions at both gates."""
    low, high, bound, _ = rows.T
    above, below = np.mean(low > cell.gain), np.mean(high < cell.gain)
    promoted = "  ".join(f"{np.mean(bound > gate):.3f}" for gate in GATES)
    width = np.nanmedian(np.log(high / low))
    missing = np.isnan(low).sum()
    text = f"{1 - above - below:6.3f}  {above:5.3f}  {below:5.3f}  {width:5.3f}  {promoted}"
    return text + (f"  {missing} without an interval" if missing else "")


def print_coverage(studies, only):
    print(f"{'cell':48s}  gain  noise  covers  above  below  width  promoted at 1.00 and 1.02")
    for number, cell in enumerate(COVERAGE):
        if re.search(only, cell.name):
            start = time.process_time()
            text = describe(cell, measure(cell, studies, number))
            seconds = time.process_time() - start
            print(f"{cell.name:48s}  {cell.gain:<4g}  {cell.noise:<5.2%}  {text}  [{seconds:.0f} s]", flush=True)


def print_power(studies, only):
    print("4 sizes x 2 seeds, unpaired")
    print("noise  gain    covers  above  below  width  promoted at 1.00 and 1.02")
    for row, noise in enumerate(NOISES):
        if not re.search(only, f"{noise:.2%}"):
            continue
        for column, gain in enumerate(GAINS):
            cell = Cell("", noise=noise, gain=gain)
            rows = measure(cell, studies, 100 + 10 * row + column)
            print(f"{noise:<5.2%}  {gain:<6.4g}  {describe(cell, rows)}", flush=True)
            if gain == 1.0:
                detectable = rows[:, 3]
        low, median, high = np.quantile(detectable, [0.1, 0.5, 0.9])
        at_median = measure(Cell("", noise=noise, gain=median), studies, 200 + row)
        at_own = [
            measure_study(Cell("", noise=noise, gain=gain), 300 + row, study)
            for study, gain in enumerate(detectable)
        ]
        print(
            f"{noise:<5.2%}  smallest detectable gain, median (10% to 90% of studies): {median:.4f} ({low:.4f} to "
            f"{high:.4f}); promoted at the gain of each study: {np.mean(np.array(at_own)[:, 2] > 1):.3f}, at the "
            f"median: {np.mean(at_median[:, 2] > 1):.3f}",
            flush=True,
        )


TABLES = {"coverage": print_coverage, "power": print_power}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="10 studies per cell")
    parser.add_argument("--table", choices=TABLES, action="append")
    parser.add_argument("--only", default="", help="only cells with this pattern in their name or noise")
    arguments = parser.parse_args()
    for name in arguments.table or TABLES:
        TABLES[name](10 if arguments.quick else arguments.studies, arguments.only)
        print()


if __name__ == "__main__":
    main()
