"""Compare the default estimator with least squares and Huber, with and without mistuned runs.

    python tests/benchmarks/fitting_estimators.py [--seeds 50]

Chinchilla's surface, 5 budgets from 1e17 to 1e21, 15 sizes over 16x in each direction, noise sigma on ln L. With
"mistuned", the loss of 5% of the runs is higher by 0.05 to 0.5. Prints median absolute relative errors, and the
difference between the default estimator's and each other estimator's error with its standard error over the seeds.
All estimators use the same seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))

from surfaces import CHINCHILLA, study

from flops_fit_core.fitting import IsoflopFitter, ParametricFitter, optimum

FITTERS = {
    "robust (default)": ParametricFitter(draws=0),
    "least squares": ParametricFitter(draws=0, objective="least-squares"),
    "huber 1e-3": ParametricFitter(draws=0, objective="huber"),
    "isoflop": IsoflopFitter(draws=0),
}


def report(errors):
    """``errors`` maps each fitter to an array of shape (seeds, 2): errors of a and of N_opt."""
    default = errors["robust (default)"]
    rows = np.random.default_rng(0).integers(len(default), size=(1000, len(default)))
    for name, fitter_errors in errors.items():
        a, params = np.median(fitter_errors, axis=0)
        line = f"  {name:18s} a {a:.5f}   N_opt(1e24) {params:.5f}"
        if fitter_errors is not default:
            draws = np.median(default[rows, 1], axis=1) - np.median(fitter_errors[rows, 1], axis=1)
            equal = np.mean(default[:, 1] == fitter_errors[:, 1])
            line += f"   default minus this {np.median(default[:, 1]) - params:+.5f} (se {draws.std():.5f})"
            line += f", equal for {equal:.0%} of the seeds"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    seeds = parser.parse_args().seeds
    for sigma in (0.01, 0.02, 0.05):
        for mistuned in (False, True):
            print(f"sigma {sigma}{', 5% mistuned' if mistuned else ''}")
            errors = {name: [] for name in FITTERS}
            for seed in range(seeds):
                runs = study(
                    CHINCHILLA, 10.0 ** np.arange(17, 22), np.geomspace(1 / 16, 16, 15), sigma=sigma, seed=seed
                )
                random = np.random.default_rng(10_000 + seed)
                bad = set(random.choice(len(runs), round(0.05 * len(runs)), replace=False)) if mistuned else set()
                runs = [
                    run.model_copy(update={"loss": run.loss + random.uniform(0.05, 0.5)}) if row in bad else run
                    for row, run in enumerate(runs)
                ]
                for name, fitter in FITTERS.items():
                    fit = fitter.fit(runs)
                    error = optimum(fit, 1e24).params.value / CHINCHILLA.n_opt(1e24) - 1
                    errors[name].append((abs(fit.exponents["a"].value / CHINCHILLA.a - 1), abs(error)))
            report({name: np.array(values) for name, values in errors.items()})


if __name__ == "__main__":
    main()
