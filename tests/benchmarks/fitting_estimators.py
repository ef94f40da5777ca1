"""The default estimator beside least squares and Huber, with and without mistuned runs.

    python tests/benchmarks/fitting_estimators.py [--seeds 50]

Chinchilla's surface, 5 budgets 1e17 to 1e21, 15 sizes over 16x each way; noise sigma on ln L; with
"mistuned", 5% of the runs are worse by +0.05 to +0.5 in loss. Prints median absolute relative errors.
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
    "isoflop parabola": IsoflopFitter(draws=0),
}


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
                    one.model_copy(update={"loss": one.loss + random.uniform(0.05, 0.5)}) if row in bad else one
                    for row, one in enumerate(runs)
                ]
                for name, fitter in FITTERS.items():
                    fit = fitter.fit(runs)
                    error = optimum(fit, 1e24).params.value / CHINCHILLA.n_opt(1e24) - 1
                    errors[name].append((abs(fit.exponents["a"].value / CHINCHILLA.a - 1), abs(error)))
            for name, found in errors.items():
                a, params = np.median(found, axis=0)
                print(f"  {name:18s} a {a:.4f}   N_opt(1e24) {params:.4f}", flush=True)


if __name__ == "__main__":
    main()
