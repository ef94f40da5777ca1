"""Coverage of nominal 90% intervals for a and ln N_opt at 100 times the largest budget.

    python tests/benchmarks/fitting_coverage.py --studies 500 [--fitter parametric] [--runs 9,18,30]

Studies are simulated on surfaces with a closed-form optimum. Sizes lie on one ladder, so that budgets share them
and each size is a trunk. Prints one line per setting: how often the interval contains the truth, the median width
of the interval of a, the number of studies with an interval, the number of them with a warning that the runs
hardly determine the law, and the reasons for missing intervals.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))

from surfaces import LOPSIDED, Surface

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import IsoflopFitter, ParametricFitter, optimum

SYMMETRIC = Surface(1.69, 406.4, 410.7, 0.31, 0.31)
SURFACES = {"symmetric": SYMMETRIC, "3:1": LOPSIDED}
DESIGNS = {9: (3, 3), 18: (3, 6), 30: (5, 6)}


def simulate(surface, runs, sigma, rho, worse, bend, random):
    """One study. ``worse`` multiplies the noise of under-trained runs; ``bend`` adds a term outside the law."""
    budgets, sizes = DESIGNS[runs]
    observations = []
    trunk_noise = {}
    ratio = 10**surface.a if sizes == 3 else 10 ** (surface.a / 2)
    base = surface.n_opt(1e17)
    for budget in 10.0 ** (17 + np.arange(budgets)):
        centre = np.log(surface.n_opt(budget) / base) / np.log(ratio)
        for rung in np.round(centre - (sizes - 1) / 2 + np.arange(sizes) + 1e-9):
            params = base * ratio**rung
            tokens = budget / (6 * params)
            shared = trunk_noise.setdefault(rung, random.standard_normal())
            noise = sigma * (np.sqrt(rho) * shared + np.sqrt(1 - rho) * random.standard_normal())
            noise *= worse if params > 1.001 * surface.n_opt(budget) else 1
            distance = np.log(params / surface.n_opt(budget))
            loss = surface.loss(params, tokens) * np.exp(noise + bend * distance**2)
            observations.append(
                Observation(
                    id=f"{budget:.0e}/{rung:.0f}",
                    params=params,
                    tokens=tokens,
                    flops=budget,
                    loss=loss,
                    budget=budget,
                    trajectory=f"size {rung:.0f}" if rho else None,
                )
            )
    return observations


def measure(fitter, surface, studies, **setting):
    hits, widths, warned, reasons = [], [], 0, {}
    for study in range(studies):
        runs = simulate(surface, **setting, random=np.random.default_rng(study))
        try:
            fit = fitter.fit(runs)
        except FitError as error:
            reason = str(error).partition("\n")[0][:60]
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        a = fit.exponents["a"]
        if a.low is None:
            reason = next(note.message for note in fit.diagnostics if note.code == "no-interval")
            reason = "refits failed" if "refits" in reason or "draws" in reason else reason[14:74]
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        warned += any(note.code == "weakly-determined" and note.severity == "warning" for note in fit.diagnostics)
        target = 100 * fit.flops_range[1]
        params = optimum(fit, target).params
        hits.append((a.low <= surface.a <= a.high, params.low <= surface.n_opt(target) <= params.high))
        widths.append(a.high - a.low)
    return np.array(hits), np.array(widths), warned, reasons


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--fitter", default="parametric", choices=["parametric", "isoflop"])
    parser.add_argument("--objective", default="robust")
    parser.add_argument("--runs", default="9,18,30")
    parser.add_argument("--only", default="", help="run only settings with this text in their line")
    arguments = parser.parse_args()
    fitter = (
        IsoflopFitter(draws=arguments.draws)
        if arguments.fitter == "isoflop"
        else ParametricFitter(draws=arguments.draws, objective=arguments.objective)
    )
    kinds = [(0.0, 1.0, 0.0), (0.5, 1.0, 0.0), (0.0, 5.0, 0.0), (0.0, 1.0, 0.004)]
    designs = [int(number) for number in arguments.runs.split(",")]
    for runs, sigma, name, (rho, worse, bend) in itertools.product(designs, (0.01, 0.03), SURFACES, kinds):
        label = (
            f"{runs:3d} runs  sigma {sigma:.0%}  {name:9s}  trunk correlation {rho}  under-trained x{worse:.0f}"
        )
        label += "  outside the law" if bend else ""
        if arguments.only not in label:
            continue
        start = time.process_time()
        setting = {"runs": runs, "sigma": sigma, "rho": rho, "worse": worse, "bend": bend}
        hits, widths, warned, reasons = measure(fitter, SURFACES[name], arguments.studies, **setting)
        text = (
            f"a {hits[:, 0].mean():.3f}  N_opt {hits[:, 1].mean():.3f}  width {np.median(widths):.3f}"
            if len(hits)
            else ""
        )
        missing = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        seconds = time.process_time() - start
        print(f"{label:82s} {text}  of {len(hits)}  warned {warned}  [{seconds:.0f} s]  {missing}", flush=True)


if __name__ == "__main__":
    main()
