"""Warnings and intervals of the parametric fitter under many kinds of noise, over simulated studies.

    OMP_NUM_THREADS=1 python tests/benchmarks/fitting_noise.py [--studies 300] [--only TEXT] [--draws 400] [--list]

Losses are drawn from the law with alpha = .34 and beta = .28, so the true a, and the true N_opt at 100 times the
largest budget, are known. Each line is one setting: how often nominal 90% intervals contain each truth, among the
studies with an interval; the number of studies without an interval; the median width of the interval of a; the
share of studies with a warning, and the warnings. ``--only`` selects settings by a part of their name.

Settings: clean; rejection (10 to 100 clean runs); outliers; growth (sigma ~ N^g or C^g); curves (trajectories of
25 checkpoints, an offset of 1% per run and .1% within a run, several D per N); trunks; many (about 2,000 rows);
one ratio (D / N spread by a factor around 20).
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))

from surfaces import CHINCHILLA

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import ParametricFitter, optimum


def simulate_run(number, params, tokens, noise, surface=CHINCHILLA, **fields):
    """An observation on ``surface`` with ``noise`` on ln L."""
    return Observation(
        id=str(number),
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        loss=surface.loss(params, tokens) * np.exp(noise),
        **fields,
    )


def isoflop(budgets, sizes, random, surface=CHINCHILLA, sigma=0.01, wide=4.0, n_power=0.0, c_power=0.0, worse=1.0):
    """IsoFLOP groups from 1e17 to 1e21. Noise grows as N^n_power C^c_power and is ``sigma`` in the middle."""
    observations = []
    for flops in 10.0 ** np.linspace(17, 21, budgets):
        for offset in np.geomspace(1 / wide, wide, sizes):
            params = surface.n_opt(flops) * offset
            noise = sigma * (params / surface.n_opt(1e19)) ** n_power * (flops / 1e19) ** c_power
            noise *= worse if offset > 1.001 else 1
            observations.append(
                simulate_run(
                    len(observations), params, flops / 6 / params, noise * random.standard_normal(), surface
                )
            )
    return observations


def few(count, random, **setting):
    """``count`` random runs of a grid of 5 budgets."""
    sizes = -(-count // 5)
    runs = isoflop(5, sizes, random, **setting)
    keep = np.sort(random.choice(len(runs), count, replace=False))
    return [runs[row] for row in keep]


def mistuned(count, share, random, sigma=0.01):
    """The loss of a share of the runs, at least one, is higher by .05 to .5."""
    runs = few(count, random, sigma=sigma)
    bad = set(random.choice(count, max(1, round(share * count)), replace=False).tolist())
    return [
        run.model_copy(update={"loss": run.loss + random.uniform(0.05, 0.5)}) if row in bad else run
        for row, run in enumerate(runs)
    ]


def curves(count, random, checkpoints=25, offset=0.01, within=0.001, sizes=6):
    """``count`` training runs of ``sizes`` sizes. Each is a curve of checkpoints from 1e9 tokens on."""
    observations = []
    for number in range(count):
        params = np.geomspace(2e7, 1e9, min(sizes, count))[number % sizes]
        shared = offset * random.standard_normal()
        for tokens in 1e9 * 1.25 ** np.arange(checkpoints):
            noise = shared + within * random.standard_normal()
            observations.append(simulate_run(len(observations), params, tokens, noise, trajectory=f"run{number}"))
    return observations


def trunks(budgets, sizes, rho, random, sigma=0.01):
    """IsoFLOP groups on one ladder of sizes. Each size is a trunk."""
    observations, trunk_noise = [], {}
    ratio = 10 ** (CHINCHILLA.a / 2)
    base = CHINCHILLA.n_opt(1e17)
    for flops in 10.0 ** (17 + np.arange(budgets)):
        centre = np.log(CHINCHILLA.n_opt(flops) / base) / np.log(ratio)
        for rung in np.round(centre - (sizes - 1) / 2 + np.arange(sizes) + 1e-9):
            params = base * ratio**rung
            shared = trunk_noise.setdefault(rung, random.standard_normal())
            noise = sigma * (np.sqrt(rho) * shared + np.sqrt(1 - rho) * random.standard_normal())
            observations.append(
                simulate_run(len(observations), params, flops / 6 / params, noise, trajectory=f"size {rung:.0f}")
            )
    return observations


def seeds(count, random, groups=None):
    """About ``count`` rows: 5 budgets, 7 sizes, many seeds. Rows of one of the ``groups`` share an offset."""
    observations = []
    repeats = round(count / 35)
    for _ in range(repeats):
        for run in isoflop(5, 7, random):
            observations.append(run.model_copy(update={"id": str(len(observations)), "trajectory": None}))
    if groups is None:
        return observations
    offsets = 0.01 * random.standard_normal(groups)
    return [
        run.model_copy(
            update={"trajectory": f"run{row % groups}", "loss": run.loss * np.exp(offsets[row % groups])}
        )
        for row, run in enumerate(observations)
    ]


def single_ratio(spread, sigma, random, seeds=3):
    """8 sizes with ``seeds`` runs each. D / N is 20, times a factor from 1 / ``spread`` to ``spread``."""
    observations = []
    for params in (1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9):
        for power in np.linspace(-1, 1, seeds):
            observations.append(
                simulate_run(
                    len(observations), params, 20 * params * spread**power, sigma * random.standard_normal()
                )
            )
    return observations


def mostly_single_value(axis, sigma, random):
    """20 runs with the same N and many D (or the same D and many N), and two runs at each of two other values."""
    fixed, limits = (1e8, (1e9, 1e11)) if axis == "N" else (5e9, (1e7, 1e9))
    pairs = [(fixed, value) for value in np.geomspace(*limits, 20)]
    pairs += [(fixed * factor, value) for factor in (0.2, 5.0) for value in (limits[0] * 3, limits[1] / 3)]
    return [
        simulate_run(row, *(pair if axis == "N" else pair[::-1]), sigma * random.standard_normal())
        for row, pair in enumerate(pairs)
    ]


SETTINGS = {
    **{
        f"clean 5x7 sigma {sigma:.1%}": lambda r, s=sigma: isoflop(5, 7, r, sigma=s)
        for sigma in (0.003, 0.007, 0.01, 0.02)
    },
    **{f"rejection {n} runs": lambda r, n=n: few(n, r) for n in (10, 11, 12, 14, 16, 20, 25, 35, 50, 75, 100)},
    **{f"rejection {n} runs under-trained x3": lambda r, n=n: few(n, r, worse=3.0) for n in (12, 20, 50)},
    **{f"outliers {n} runs 5%": lambda r, n=n: mistuned(n, 0.05, r) for n in (12, 20, 35, 75)},
    "growth 18 runs none": lambda r: isoflop(3, 6, r),
    "growth 30 runs none": lambda r: isoflop(5, 6, r),
    **{
        f"growth {b * s} runs N^{g}": lambda r, b=b, s=s, g=g: isoflop(b, s, r, n_power=g)
        for b, s in ((3, 3), (3, 6), (5, 6))
        for g in (-0.2, 0.2, 0.4)
    },
    **{
        f"growth {b * s} runs C^{g}": lambda r, b=b, s=s, g=g: isoflop(b, s, r, c_power=g)
        for b, s in ((3, 6), (5, 6))
        for g in (-0.2, 0.2)
    },
    **{f"curves {n}": lambda r, n=n: curves(n, r) for n in (6, 8, 12, 16, 24)},
    **{f"curves {n} distinct": lambda r, n=n: curves(n, r, sizes=n) for n in (8, 12)},
    **{
        f"trunks {b * s} runs rho {rho}": lambda r, b=b, s=s, rho=rho: trunks(b, s, rho, r)
        for b, s in ((3, 3), (3, 6), (5, 6))
        for rho in (0.0, 0.5, 0.9)
    },
    "many 1960 rows": lambda r: seeds(1960, r),
    "many 2100 rows": lambda r: seeds(2100, r),
    "many 1960 rows 24 trajectories": lambda r: seeds(1960, r, 24),
    "many 2100 rows 24 trajectories": lambda r: seeds(2100, r, 24),
    **{
        f"one ratio spread {spread} sigma {sigma:.1%}": lambda r, x=spread, s=sigma: single_ratio(x, s, r)
        for spread in (1.0, 1.03, 1.1, 1.3, 1.6, 2.0, 4.0)
        for sigma in (0.001, 0.005)
    },
    **{
        f"mostly one {axis} sigma {sigma:.1%}": lambda r, x=axis, s=sigma: mostly_single_value(x, s, r)
        for axis in "ND"
        for sigma in (0.001, 0.01)
    },
}


def measure(simulate, studies, draws, objective):
    hits, widths, missing = [], [], collections.Counter()
    warned, warnings = 0, collections.Counter()
    for number in range(studies):
        runs = simulate(np.random.default_rng(number))
        try:
            fit = ParametricFitter(draws=draws, objective=objective).fit(runs)
        except FitError as error:
            missing[str(error)[:60]] += 1
            continue
        codes = {note.code for note in fit.diagnostics if note.severity == "warning"}
        warnings.update(codes)
        warned += bool(codes)
        a = fit.exponents["a"]
        if a.low is None:
            messages = (note.message[14:60] for note in fit.diagnostics if note.code == "no-interval")
            missing[next(messages, "not requested")] += 1
            continue
        target = 100 * fit.flops_range[1]
        params = optimum(fit, target).params
        hits.append(
            (
                a.low <= CHINCHILLA.a <= a.high,
                params.low <= CHINCHILLA.n_opt(target) <= params.high,
                bool(fit.excluded),
            )
        )
        widths.append(a.high - a.low)
    return np.array(hits), widths, missing, warned, warnings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--objective", default="robust")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    for name, simulate in SETTINGS.items():
        if arguments.only not in name:
            continue
        if arguments.list:
            print(name)
            continue
        start = time.process_time()
        hits, widths, missing, warned, warnings = measure(
            simulate, arguments.studies, arguments.draws, arguments.objective
        )
        text = f"{name:38s} no interval {sum(missing.values()):3d}"
        if len(hits):
            text += f"  a {hits[:, 0].mean():.3f}  N_opt {hits[:, 1].mean():.3f}  width {np.median(widths):.3f}"
            if rejected := int(hits[:, 2].sum()):
                text += f"  after rejection a {hits[hits[:, 2], 0].mean():.2f} of {rejected}"
        text += f"  warned {warned / arguments.studies:.3f} {dict(warnings)} {dict(missing)}"
        print(f"{text} [{time.process_time() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
