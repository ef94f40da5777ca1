"""Alarms and intervals of the parametric fitter under noise of many kinds, over simulated studies.

    OMP_NUM_THREADS=1 python tests/benchmarks/fitting_noise.py [--studies 300] [--only TEXT] [--draws 400] [--list]

Losses are drawn from the law with alpha = .34, beta = .28, so that the truth of a and of N_opt at 100 times the
largest budget is known. Each line is one cell: how often nominal 90% intervals hold the truth of either, among the
studies that have an interval; how many have none; the median width of the interval of a; in how many studies any
warning is raised, and which. ``--only`` runs the cells whose name holds the text.

Cells: clean; rejection (10 to 100 clean runs); outliers; growth (sigma ~ N^g or C^g); curves (trajectories of 25
checkpoints, 1% offset a run and .1% within, each N with several D); trunks; many (around 2,000 rows); one ratio
(D / N spread by a factor around 20).
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


def run(number, params, tokens, noise, surface=CHINCHILLA, **more):
    return Observation(
        id=str(number),
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        loss=surface.loss(params, tokens) * np.exp(noise),
        **more,
    )


def isoflop(budgets, sizes, random, surface=CHINCHILLA, sigma=0.01, wide=4.0, n_power=0.0, c_power=0.0, worse=1.0):
    """IsoFLOP groups 1e17 to 1e21; noise grows as N^n_power C^c_power and is ``sigma`` at the middle."""
    out = []
    for flops in 10.0 ** np.linspace(17, 21, budgets):
        for offset in np.geomspace(1 / wide, wide, sizes):
            params = surface.n_opt(flops) * offset
            noise = sigma * (params / surface.n_opt(1e19)) ** n_power * (flops / 1e19) ** c_power
            noise *= worse if offset > 1.001 else 1
            out.append(run(len(out), params, flops / 6 / params, noise * random.standard_normal(), surface))
    return out


def few(count, random, **setting):
    """``count`` runs of a grid of 5 budgets, the last ones left out evenly."""
    sizes = -(-count // 5)
    runs = isoflop(5, sizes, random, **setting)
    keep = np.sort(random.choice(len(runs), count, replace=False))
    return [runs[row] for row in keep]


def mistuned(count, share, random, sigma=0.01):
    """A share of the runs, one at least, is worse by .05 to .5 in loss."""
    runs = few(count, random, sigma=sigma)
    bad = set(random.choice(count, max(1, round(share * count)), replace=False).tolist())
    return [
        each.model_copy(update={"loss": each.loss + random.uniform(0.05, 0.5)}) if row in bad else each
        for row, each in enumerate(runs)
    ]


def curves(count, random, checkpoints=25, offset=0.01, within=0.001, sizes=6):
    """``count`` training runs of ``sizes`` sizes, each a curve of checkpoints from 1e9 tokens on."""
    out = []
    for number in range(count):
        params = np.geomspace(2e7, 1e9, min(sizes, count))[number % sizes]
        shared = offset * random.standard_normal()
        for tokens in 1e9 * 1.25 ** np.arange(checkpoints):
            noise = shared + within * random.standard_normal()
            out.append(run(len(out), params, tokens, noise, trajectory=f"run{number}"))
    return out


def trunks(budgets, sizes, rho, random, sigma=0.01):
    """IsoFLOP groups on one ladder of sizes, each a trunk."""
    out, shared = [], {}
    ratio = 10 ** (CHINCHILLA.a / 2)
    base = CHINCHILLA.n_opt(1e17)
    for flops in 10.0 ** (17 + np.arange(budgets)):
        centre = np.log(CHINCHILLA.n_opt(flops) / base) / np.log(ratio)
        for rung in np.round(centre - (sizes - 1) / 2 + np.arange(sizes) + 1e-9):
            params = base * ratio**rung
            common = shared.setdefault(rung, random.standard_normal())
            noise = sigma * (np.sqrt(rho) * common + np.sqrt(1 - rho) * random.standard_normal())
            out.append(run(len(out), params, flops / 6 / params, noise, trajectory=f"size {rung:.0f}"))
    return out


def seeds(count, random, groups=None):
    """About ``count`` rows: 5 budgets of 7 sizes, many seeds; seeds of one size share an offset in ``groups``."""
    out = []
    repeats = round(count / 35)
    for _ in range(repeats):
        for each in isoflop(5, 7, random):
            out.append(each.model_copy(update={"id": str(len(out)), "trajectory": None}))
    if groups is None:
        return out
    offsets = 0.01 * random.standard_normal(groups)
    return [
        each.model_copy(
            update={"trajectory": f"run{row % groups}", "loss": each.loss * np.exp(offsets[row % groups])}
        )
        for row, each in enumerate(out)
    ]


def one_ratio(spread, sigma, random, seeds=3):
    """8 sizes, ``seeds`` runs each, at D / N = 20 times or over ``spread``."""
    out = []
    for params in (1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9):
        for power in np.linspace(-1, 1, seeds):
            out.append(run(len(out), params, 20 * params * spread**power, sigma * random.standard_normal()))
    return out


def mostly_one(axis, sigma, random):
    """20 runs of one N with many D (or of one D with many N), and two at each of two others."""
    one, many = (1e8, (1e9, 1e11)) if axis == "N" else (5e9, (1e7, 1e9))
    pairs = [(one, each) for each in np.geomspace(*many, 20)]
    pairs += [(one * factor, each) for factor in (0.2, 5.0) for each in (many[0] * 3, many[1] / 3)]
    return [
        run(row, *(pair if axis == "N" else pair[::-1]), sigma * random.standard_normal())
        for row, pair in enumerate(pairs)
    ]


CELLS = {
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
        f"one ratio spread {spread} sigma {sigma:.1%}": lambda r, x=spread, s=sigma: one_ratio(x, s, r)
        for spread in (1.0, 1.03, 1.1, 1.3, 1.6, 2.0, 4.0)
        for sigma in (0.001, 0.005)
    },
    **{
        f"mostly one {axis} sigma {sigma:.1%}": lambda r, x=axis, s=sigma: mostly_one(x, s, r)
        for axis in "ND"
        for sigma in (0.001, 0.01)
    },
}


def measure(make, studies, draws, objective):
    hits, widths, none = [], [], collections.Counter()
    warned, alarms = 0, collections.Counter()
    for number in range(studies):
        runs = make(np.random.default_rng(number))
        try:
            fit = ParametricFitter(draws=draws, objective=objective).fit(runs)
        except FitError as error:
            none[str(error)[:60]] += 1
            continue
        codes = {each.code for each in fit.diagnostics if each.severity == "warning"}
        alarms.update(codes)
        warned += bool(codes)
        a = fit.exponents["a"]
        if a.low is None:
            none[next((d.message[14:60] for d in fit.diagnostics if d.code == "no-interval"), "not asked")] += 1
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
    return np.array(hits), widths, none, warned, alarms


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--objective", default="robust")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    for name, make in CELLS.items():
        if given.only not in name:
            continue
        if given.list:
            print(name)
            continue
        start = time.process_time()
        hits, widths, none, warned, alarms = measure(make, given.studies, given.draws, given.objective)
        text = f"{name:38s} none {sum(none.values()):3d}"
        if len(hits):
            text += f"  a {hits[:, 0].mean():.3f}  N_opt {hits[:, 1].mean():.3f}  width {np.median(widths):.3f}"
            if left := int(hits[:, 2].sum()):
                text += f"  after rejection a {hits[hits[:, 2], 0].mean():.2f} of {left}"
        text += f"  warned {warned / given.studies:.3f} {dict(alarms)} {dict(none)}"
        print(f"{text} [{time.process_time() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
