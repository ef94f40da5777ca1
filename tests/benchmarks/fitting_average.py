"""Coverage of the default fitter's intervals, and of those for new runs, in simulated IsoFLOP studies.

    OMP_NUM_THREADS=1 python tests/benchmarks/fitting_average.py [--studies 300] [--surface NAME] [--noise .01]

Per surface (chinchilla; 3:1, with alpha = 3 beta; skaling with k = 0.3), design (4 budgets x 5 sizes, 5 x 6) and
noise of ln L (0.3, 1, 2%): the share of studies with intervals; the coverage of nominal 90% intervals of the
exponent a between the smallest and the largest budget, of N_opt and L_opt at 10 times the largest budget, and of
the loss of a new run (its probability, for the noise of the simulation) at the optimum of the largest budget and
of 10 times it; median widths of a and of ln L of the new run at 10 times; the share of studies with the warning
`prior`, and the coverage of a in the others.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from flops_fit_core import Observation
from flops_fit_core.fitting import AverageFitter, optimum, predict_loss

SURFACES = {
    "chinchilla": {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28, "k": 1.0},
    "3:1": {"E": 1.69, "A": 4000.0, "alpha": 0.465, "B": 30.0, "beta": 0.155, "k": 1.0},
    "skaling": {"E": 1.69, "A": 900.0, "alpha": 0.34, "B": 700.0, "beta": 0.28, "k": 0.3},
}
NOISES = (0.003, 0.01, 0.02)
DESIGNS = {"4 x 5": (4, 5), "5 x 6": (5, 6)}


def true_loss(surface, params, tokens):
    first = surface["A"] / params ** surface["alpha"]
    second = surface["B"] / tokens ** surface["beta"]
    k = surface["k"]
    return surface["E"] + (first ** (1 / k) + second ** (1 / k)) ** k


def true_optimum(surface, flops):
    best = minimize_scalar(
        lambda x: true_loss(surface, np.exp(x), flops / 6 / np.exp(x)),
        bounds=(np.log(1e4), np.log(flops / 6e3)),
        method="bounded",
        options={"xatol": 1e-10},
    ).x
    return float(np.exp(best)), float(true_loss(surface, np.exp(best), flops / 6 / np.exp(best)))


def simulate(surface, budgets, sizes, sigma, random):
    runs = []
    shift = random.uniform(-0.3, 0.3)
    for budget in budgets:
        centre = np.log(true_optimum(surface, budget)[0]) + shift
        for offset in np.linspace(-1.2, 1.2, sizes):
            params = float(np.exp(centre + offset))
            tokens = budget / 6 / params
            loss = true_loss(surface, params, tokens) * np.exp(sigma * random.standard_normal())
            runs.append(
                Observation(
                    id=str(len(runs)), params=params, tokens=tokens, flops=budget, loss=loss, budget=budget
                )
            )
    return runs


def holds(interval, value):
    return interval.low is not None and interval.low <= value <= interval.high


def measure(surface, design, sigma, studies, draws):
    count, sizes = design
    hits, widths, warned, bounded = [], [], [], 0
    for study in range(studies):
        random = np.random.default_rng([study, count, int(1e4 * sigma)])
        budgets = 1e18 * random.uniform(2, 6) ** np.arange(count)
        fit = AverageFitter(draws=draws).fit(simulate(surface, budgets, sizes, sigma, random))
        a = fit.exponents["a"]
        if a.low is None:
            continue
        bounded += 1
        sizes_at_ends = [true_optimum(surface, budget)[0] for budget in (budgets[0], budgets[-1])]
        slope = np.log(sizes_at_ends[1] / sizes_at_ends[0]) / np.log(budgets[-1] / budgets[0])
        far = 10 * budgets[-1]
        params, loss = true_optimum(surface, far)
        answer = optimum(fit, far)
        inside = []
        for flops in (budgets[-1], far):
            best, level = true_optimum(surface, flops)
            new = predict_loss(fit, best, flops / 6 / best, new_run=True)
            ends = np.log(np.array([new.low, new.high]) / level) / sigma
            inside.append(np.diff(norm.cdf(ends))[0])
        warned.append(any(item.code == "prior" for item in fit.diagnostics))
        widths.append((a.high - a.low, np.log(new.high / new.low)))
        hits.append((holds(a, slope), holds(answer.params, params), holds(answer.loss, loss), *inside))
    others = [hit[0] for hit, warning in zip(hits, warned, strict=True) if not warning]
    return bounded / studies, np.mean(hits, axis=0), np.median(widths, axis=0), np.mean(warned), np.mean(others)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--surface", choices=SURFACES, help="only this surface (default: all)")
    parser.add_argument("--noise", type=float, choices=NOISES, help="only this noise (default: all)")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    studies, draws = (10, 100) if arguments.quick else (arguments.studies, 400)
    print(
        "surface     design  noise  intervals |   a   N_opt  L_opt  run at C_max  run at 10 C_max | width a, run"
        " | warned, a of others"
    )
    surfaces = [arguments.surface] if arguments.surface else list(SURFACES)
    noises = [arguments.noise] if arguments.noise else list(NOISES)
    for name, (label, design), sigma in itertools.product(surfaces, DESIGNS.items(), noises):
        share, coverage, widths, warned, others = measure(SURFACES[name], design, sigma, studies, draws)
        print(
            f"{name:11} {label:6} {sigma:6.1%} {share:8.1%}  | "
            + "  ".join(f"{value:.2f}" for value in coverage)
            + f" | {widths[0]:.3f} {widths[1]:.4f} | {warned:4.0%} {others:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
