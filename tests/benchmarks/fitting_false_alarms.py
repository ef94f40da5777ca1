"""Warnings of the parametric fitter on clean studies, and the power of the tests of the law's form.

    OMP_NUM_THREADS=1 python tests/benchmarks/fitting_false_alarms.py [clean] [readme] [power] [--studies 112]
        [--draws 100] [--quick]

Counts diagnostics of severity ``warning``; notes are not alarms. Losses are drawn with Gaussian noise on ln L.

clean   studies that follow the law (alpha = .34, beta = .28): IsoFLOP grids of 4 budgets x 5 sizes and 5 x 6
        (N_opt / 4 to 4 N_opt, C from 1e17 to 1e21), and 40 random runs like Chinchilla's (C log-uniform, N within
        a factor of 5 of N_opt). The share of studies with a warning, per code, and with any warning
readme  the p value of the curvature test for the 23 runs of the README's study, and its warnings
power   the share of studies with a warning of ``curvature`` (the first message of lack-of-fit), ``lack-of-fit``
        (the other message) and ``new-runs``, and with any of them, on surfaces of another form: Skaling's
        E + A (N^-alpha + R D^-beta)^k with k = .3; exponents of .465 and .155 with profiles that are parabolas in
        ln N of the same minimum and curvature; 20% of the runs 3% worse. Also for a grid like the README's: 4
        budgets 2x apart, 6 sizes from N_opt / 3 to 3 N_opt
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))

from readme_study import README_RUNS
from surfaces import CHINCHILLA, LOPSIDED

from flops_fit_core import Observation
from flops_fit_core.fitting import ParametricFitter
from flops_fit_core.fitting import residual_diagnostics as tests

NOISE = (0.003, 0.01, 0.02)
TESTS = ("curvature", "lack-of-fit", "new-runs")


@functools.cache
def optimal_params(loss, flops):
    ln_params = np.linspace(np.log(1e6), np.log(1e12), 4001)
    return float(np.exp(ln_params[np.argmin(loss(np.exp(ln_params), flops / 6 / np.exp(ln_params)))]))


@functools.cache
def curvature(loss, flops, step=0.05):
    """Half the second derivative of ln L in ln N at the optimum of a budget."""
    sizes = optimal_params(loss, flops) * np.exp(step * np.arange(-1, 2))
    below, best, above = np.log(loss(sizes, flops / 6 / sizes))
    return float(below - 2 * best + above) / (2 * step**2)


def isoflop(budgets, sizes):
    """(C, N / N_opt) of a grid."""
    return list(itertools.product(10.0 ** np.linspace(17, 21, budgets), np.geomspace(0.25, 4, sizes)))


def scattered(count, random):
    """(C, N / N_opt) of random runs."""
    flops = np.exp(random.uniform(np.log(1e17), np.log(1e21), count))
    return list(zip(flops, np.exp(random.uniform(-1.6, 1.6, count)), strict=True))


def make_cells(design, random):
    if design == "4x6 narrow":
        return list(itertools.product(1e18 * 2.0 ** np.arange(4), np.geomspace(1 / 3, 3, 6)))
    return scattered(40, random) if design == "40 random" else isoflop(*map(int, design.split("x")))


DESIGNS = ("4x5", "5x6", "40 random")


def observe(cells, loss, sigma, random, is_parabola=False):
    """Runs of the ``cells``; with ``is_parabola``, ln L has the minimum and curvature of ``loss`` only."""
    runs = []
    for number, (flops, offset) in enumerate(cells):
        best = optimal_params(loss, flops)
        params = best * offset
        value = loss(params, flops / 6 / params)
        if is_parabola:
            value = loss(best, flops / 6 / best) * np.exp(curvature(loss, flops) * np.log(offset) ** 2)
        value *= np.exp(sigma * random.standard_normal())
        tokens = flops / 6 / params
        runs.append(Observation(id=str(number), params=params, tokens=tokens, flops=flops, loss=value))
    return runs


def skaling(params, tokens):
    """Exponents k alpha = .34 and k beta = .28 in the limits of N and of D."""
    return 1.69 + 406.4 * (params ** (-0.34 / 0.3) + 1.036 * tokens ** (-0.28 / 0.3)) ** 0.3


def name_test(diagnostic):
    is_curvature = diagnostic.code == "lack-of-fit" and "near the optimum" in diagnostic.message
    return "curvature" if is_curvature else diagnostic.code


def count_codes(fits):
    """Shares of fits with each code of a warning, and with any."""
    codes = [{name_test(item) for item in fit.diagnostics if item.severity == "warning"} for fit in fits]
    counts = collections.Counter(code for fit_codes in codes for code in fit_codes)
    return {code: count / len(codes) for code, count in counts.most_common()}, np.mean([bool(c) for c in codes])


def clean(studies, draws):
    everything = []
    for number, (design, sigma) in enumerate(itertools.product(DESIGNS, NOISE)):
        random = np.random.default_rng([1, number])
        fits = [
            ParametricFitter(draws=draws).fit(observe(make_cells(design, random), CHINCHILLA.loss, sigma, random))
            for _ in range(studies)
        ]
        everything += fits
        report(f"{design:10s} noise {sigma:.1%}", fits)
    report(f"all {len(everything)} studies", everything)


def report(label, fits):
    shares, any_share = count_codes(fits)
    text = ", ".join(f"{code} {share:.1%}" for code, share in shares.items())
    print(f"{label}: any warning {any_share:.1%} ({text})", flush=True)


def power(studies, draws):
    def mistuned(cells, sigma, random):
        runs = observe(cells, CHINCHILLA.loss, sigma, random)
        worse = random.random(len(runs)) < 0.2
        return [
            run.model_copy(update={"loss": run.loss * (1.03 if bad else 1)})
            for run, bad in zip(runs, worse, strict=True)
        ]

    kinds = {
        "Skaling, k = .3": lambda cells, sigma, random: observe(cells, skaling, sigma, random),
        "3:1, parabola": lambda cells, sigma, random: observe(
            cells, LOPSIDED.loss, sigma, random, is_parabola=True
        ),
        "20% mistuned by 3%": mistuned,
    }
    for (kind, simulate), design, sigma in itertools.product(kinds.items(), (*DESIGNS, "4x6 narrow"), NOISE):
        random = np.random.default_rng(2)
        fits = [
            ParametricFitter(draws=0).fit(simulate(make_cells(design, random), sigma, random))
            for _ in range(studies)
        ]
        shares, _ = count_codes(fits)
        any_share = np.mean([any(name_test(item) in TESTS for item in fit.diagnostics) for fit in fits])
        text = ", ".join(f"{code} {shares.get(code, 0.0):.0%}" for code in TESTS)
        print(f"{kind:18s} {design:10s} noise {sigma:.1%}: any test {any_share:.0%} ({text})", flush=True)


def readme(studies, draws):
    p_values = []
    original = tests.curvature_p_value
    tests.curvature_p_value = lambda fitted: p_values.append(original(fitted)) or p_values[-1]
    fit = ParametricFitter(draws=draws).fit(README_RUNS)
    tests.curvature_p_value = original
    print(f"the README's study: curvature test p = {p_values[0]:.4f}")
    for diagnostic in fit.diagnostics:
        if name_test(diagnostic) in TESTS:
            print(f"  {diagnostic.code}: {diagnostic.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"clean": clean, "readme": readme, "power": power}
    parser.add_argument("parts", nargs="*", choices=[[], *parts])
    parser.add_argument("--studies", type=int, default=112, help="studies per setting: 9 x 112 = 1,008 in all")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="20 studies of 50 draws")
    arguments = parser.parse_args()
    studies, draws = (20, 50) if arguments.quick else (arguments.studies, arguments.draws)
    for part in arguments.parts or parts:
        print(f"--- {part}")
        parts[part](studies, draws)


if __name__ == "__main__":
    main()
