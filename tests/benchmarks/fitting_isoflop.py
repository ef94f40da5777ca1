"""Intervals of ``isoflop``: how many are bounded, how often they hold the truth, and how wide they are.

    python tests/benchmarks/fitting_isoflop.py [--quick] [--first 0] [--studies 1000] [--only 3:1] [--mistuned]

A study has 4 or 5 budgets, 2 to 10 times apart from 1e15 to 1e18 FLOPs on, with 5 or 6 sizes each, 1.5 to 2.2
times apart. Grids miss the optimum by up to half a step, and follow an exponent of .45 to .55 (the true one is
.45, .25 and .48, so grids of the second surface drift away from the optimum). Noise is on ln L. The surfaces are
Chinchilla's, one with alpha = 3 beta, and L = E + A (N^-alpha + R D^-beta)^k with k = .3. ``parametric`` fits the
first 300 of the same studies. Prints per cell: the share of studies with an interval, how often 90% intervals hold
the true a, N_opt and L_opt (the last two at 10 times the largest budget), their median widths (of ln N_opt and ln
L_opt), the median ratio of the widths of ``isoflop`` to those of ``parametric``, and the share of studies with a
warning.

``--law skaling`` compares with that law instead of ``parametric``, with the law's own prior.

``--mistuned`` raises the loss of one run by 4% to 10% and prints how often ``isoflop`` leaves that run out, and
how often it leaves out others.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import IsoflopFitter, LawFitter, ParametricFitter, optimum


@dataclass(frozen=True)
class Surface:
    """L = E + (A N^-alpha + B D^-beta)^k with C = 6 N D."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    k: float = 1.0

    @property
    def a(self):
        return self.beta / (self.alpha + self.beta)

    def n_opt(self, flops):
        ratio = self.alpha * self.A / (self.beta * self.B)
        return (ratio * (flops / 6) ** self.beta) ** (1 / (self.alpha + self.beta))

    def loss(self, params, flops):
        tokens = flops / (6 * params)
        return self.E + (self.A * params**-self.alpha + self.B * tokens**-self.beta) ** self.k


SURFACES = {
    "chinchilla": Surface(1.69, 406.4, 410.7, 0.34, 0.28),
    "3:1": Surface(1.69, 406.4, 410.7, 0.465, 0.155),
    "skaling": Surface(1.6, 406.4 ** (1 / 0.3), 410.7 ** (1 / 0.3), 0.34 / 0.3, 0.31 / 0.3, 0.3),
}
NOISE = (0.003, 0.01, 0.02)


def simulate(surface, sigma, random, shape=None):
    budgets, sizes = shape or ((4, 5), (4, 6), (5, 5), (5, 6))[random.integers(4)]
    ratio = np.exp(random.uniform(np.log(2), np.log(10)))
    step = random.uniform(np.log(1.5), np.log(2.2))
    flops = 10 ** random.uniform(15, 18) * ratio ** np.arange(budgets)
    middle = np.log(surface.n_opt(np.sqrt(flops[0] * flops[-1]))) + random.uniform(-0.5, 0.5) * step
    centres = middle + random.uniform(0.45, 0.55) * (np.log(flops) - np.log(flops).mean())
    runs = []
    for budget, centre in zip(flops, centres, strict=True):
        for number in range(sizes):
            params = float(np.exp(centre + step * (number - (sizes - 1) / 2)))
            loss = float(surface.loss(params, budget) * np.exp(sigma * random.standard_normal()))
            runs.append(
                Observation(
                    id=f"{budget:.2e}/{number}",
                    params=params,
                    tokens=float(budget / (6 * params)),
                    flops=float(budget),
                    loss=loss,
                    budget=float(budget),
                )
            )
    return runs


def measure(fitter, runs, surface):
    """Hits and widths of a, N_opt and L_opt, or None without an interval; and whether there is a warning."""
    try:
        fit = fitter.fit(runs)
    except FitError:
        return None, True
    has_warning = any(diagnostic.severity == "warning" for diagnostic in fit.diagnostics)
    a = fit.exponents["a"]
    if a.low is None:
        return None, has_warning
    target = 10 * max(run.flops for run in runs)
    prediction = optimum(fit, target)
    best = surface.n_opt(target)
    hits, widths = [a.low <= surface.a <= a.high], [a.high - a.low]
    for interval, truth in ((prediction.params, best), (prediction.loss, surface.loss(best, target))):
        hits.append(interval.low <= truth <= interval.high)
        widths.append(np.log(interval.high / interval.low))
    return np.array([hits, widths], dtype=float), has_warning


def compare(surface, sigma, first, studies, compared, draws, shape, law):
    other = LawFitter(law, draws=draws) if law else ParametricFitter(draws=draws)
    fitters = IsoflopFitter(draws=draws), other
    outcomes = [[], []]
    warned = 0
    for study in range(studies):
        runs = simulate(surface, sigma, np.random.default_rng(first + study), shape)
        for number, fitter in enumerate(fitters if study < compared else fitters[:1]):
            outcome, has_warning = measure(fitter, runs, surface)
            outcomes[number].append(outcome)
            warned += has_warning and number == 0
    ours, theirs = outcomes
    text = ""
    for name, results in (("isoflop", ours), (law or "parametric", theirs)):
        bounded = [result for result in results if result is not None]
        cover, width = np.mean([hits for hits, _ in bounded], axis=0), np.median([w for _, w in bounded], axis=0)
        text += f"  {name} bounded {len(bounded) / len(results):.3f} holds " + " ".join(f"{c:.3f}" for c in cover)
        text += " width " + " ".join(f"{w:.3f}" for w in width)
    both = [(x[1], y[1]) for x, y in zip(ours, theirs, strict=False) if x is not None and y is not None]
    ratio = np.median([x / y for x, y in both], axis=0)
    return f"{text}  ratio " + " ".join(f"{r:.2f}" for r in ratio) + f"  warned {warned / studies:.3f}"


def name_outliers(fitter, runs):
    try:
        return {name for name, reason in fitter.fit(runs).excluded.items() if reason.startswith("further")}
    except FitError:
        return set()


def find_mistuned(surface, sigma, studies, shape):
    fitter = IsoflopFitter(draws=0)
    clean, hit, others = 0, 0, 0
    for study in range(studies):
        random = np.random.default_rng(study)
        runs = simulate(surface, sigma, random, shape)
        rejected = name_outliers(fitter, runs)
        clean += bool(rejected)
        bad = int(random.integers(len(runs)))
        loss = runs[bad].loss * (1 + random.uniform(0.04, 0.1))
        runs[bad] = runs[bad].model_copy(update={"loss": loss})
        rejected = name_outliers(fitter, runs)
        hit += runs[bad].id in rejected
        others += bool(rejected - {runs[bad].id})
    shares = [count / studies for count in (clean, hit, others)]
    return "  clean studies with a run left out {:.3f}, mistuned run left out {:.3f}, others {:.3f}".format(
        *shares
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first study")
    parser.add_argument("--compared", type=int, default=300, help="studies that parametric fits too")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="30 studies of 100 draws")
    parser.add_argument("--only", default="", help="run only cells with this text in their line")
    parser.add_argument("--shape", default="", help="budgets x sizes of every study, such as 4x3")
    parser.add_argument("--law", default="", help="law to compare with instead of parametric")
    parser.add_argument("--mistuned", action="store_true")
    arguments = parser.parse_args()
    studies, draws = (30, 100) if arguments.quick else (arguments.studies, arguments.draws)
    shape = tuple(int(number) for number in arguments.shape.split("x")) if arguments.shape else None
    for name, surface in SURFACES.items():
        for sigma in NOISE:
            label = f"{name:10s} noise {sigma:.1%}"
            if arguments.only not in label:
                continue
            start = time.process_time()
            if arguments.mistuned:
                text = find_mistuned(surface, sigma, studies, shape)
            else:
                text = compare(
                    surface, sigma, arguments.first, studies, arguments.compared, draws, shape, arguments.law
                )
            print(f"{label}{text}  [{time.process_time() - start:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
