"""Published tables of real runs: optima, ladders of exponents, backtests.

    python tests/benchmarks/fitting_tables.py FOLDER [optimum] [ladder] [backtest] [errors]

FOLDER holds CSV tables (params, tokens, flops, loss, group): epoch_chinchilla_240.csv, gadre_open_lm.csv,
olmo_ladder_c4.csv, porian_isoflop.csv with porian_published_fits.csv, and any other tables. They are not part of
this repository.

optimum   the global optimum of least squares and Huber on every group of every table, compared with 200 starts of
          the same solver and 20 of scipy's L-BFGS-B
ladder    Porian et al. 2024: our Akima exponents, compared with the published ones and their 95% intervals
backtest  mean absolute relative error on the largest runs, fitted on the smaller runs
errors    standard errors on Chinchilla's 240 points by case bootstrap, compared with Besiroglu et al. 2024
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from flops_fit_core import FitError, Observation
from flops_fit_core.fitting import IsoflopFitter, ParametricFitter, backtest, read_table
from flops_fit_core.fitting.solvers.newton import derivatives, value
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import fit_surface, make_problem


def groups(path):
    with path.open() as file:
        return list(dict.fromkeys(row["group"] for row in csv.DictReader(file)))


def tables(folder):
    for path in sorted(folder.glob("*.csv")):
        if "published" in path.name:
            continue
        for group in groups(path):
            yield f"{path.stem}:{group}", read_table(path, where={"group": group}).observations


def many_starts(problem, random, count):
    mean = float(np.exp(problem.y.mean()))
    share, split = random.uniform(0, 1, count), random.uniform(0.02, 0.98, count)
    alpha, beta = np.exp(random.uniform(-4, 1, (2, count)))
    rest = (1 - share) * mean
    return np.stack([share * mean, np.log(rest * split), alpha, np.log(rest * (1 - split)), beta], axis=1)


def minimize_with_scipy(problem, objective, starts):
    def total(theta):
        point = np.concatenate([np.abs(theta[:1]), theta[1:]])[None]
        return value(problem, point, objective)[0], derivatives(problem, point, objective)[0][0]

    bounds = [(0, None), (-60, 60), (0.005, 3), (-60, 60), (0.005, 3)]
    return min(
        minimize(total, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000}).fun
        for start in starts
    )


def optimum(folder):
    misses, count = 0, 0
    for name, runs in tables(folder):
        columns = np.log([(run.params, run.tokens, run.loss) for run in runs]).T
        problem = make_problem(*columns)
        for objective in (LeastSquares(), Huber()):
            start = time.process_time()
            fit = fit_surface(problem, objective)
            seconds = time.process_time() - start
            random = np.random.default_rng(0)
            starts = many_starts(problem, random, 200)
            best = min(
                problem.solve(starts, objective, steps=300).value.min(),
                minimize_with_scipy(problem, objective, starts[:20]),
            )
            miss = fit.value / best - 1
            count += 1
            misses += miss > 1e-8
            label = f"{name[:64]:64s} n={len(runs):4d} {objective.name:13s} {seconds * 1e3:6.1f} ms"
            print(f"{label}  above the best of all: {miss:9.1e}", flush=True)
    print(f"misses beyond 1e-8: {misses} of {count}")


def ladder(folder):
    with (folder / "porian_published_fits.csv").open() as file:
        published = {row["group"]: row for row in csv.DictReader(file)}
    inside = 0
    for group, row in published.items():
        runs = read_table(folder / "porian_isoflop.csv", where={"group": group}).observations
        runs = [run.model_copy(update={"budget": float(f"{run.flops:.6g}")}) for run in runs]
        a = IsoflopFitter(shape="akima", level=0.95).fit(runs).exponents["a"]
        low, high = float(row["a_bs_lo"]), float(row["a_bs_hi"])
        inside += low <= a.value <= high
        print(f"{group:45s} published {float(row['a_weighted']):.3f} ({low:.3f}, {high:.3f})   ours {a}")
    print(f"{inside} of {len(published)} inside the published intervals")


def backtests(folder):
    settings = [("epoch_chinchilla_240.csv", "chinchilla_fig4", {"above": 1e21})]
    settings += [("gadre_open_lm.csv", group, {"params": 1e9}) for group in groups(folder / "gadre_open_lm.csv")]
    settings += [("olmo_ladder_c4.csv", "olmo_ladder_c4_en", {"params": 1.2e9})]
    errors = {}
    for file, group, split in settings:
        runs = read_table(folder / file, where={"group": group}).observations
        for objective in ("robust", "least-squares", "huber"):
            fitter = ParametricFitter(draws=0, objective=objective)
            error = (
                predict_larger_models(fitter, runs, split["params"])
                if "params" in split
                else backtest(fitter, runs, **split).mean_abs_error
            )
            errors.setdefault((file, objective), []).append(error)
    for (file, objective), values in errors.items():
        spread = f"{min(values):.4f} to {max(values):.4f}, median {np.median(values):.4f}"
        print(f"{file:28s} {objective:14s} {spread}  ({len(values)} groups)")


def predict_larger_models(fitter, runs: list[Observation], params: float) -> float:
    """Mean absolute relative error on models from ``params`` on, with a fit of the smaller models."""
    from flops_fit_core.fitting import predict_loss

    fit = fitter.fit([run for run in runs if run.params < params])
    errors = [
        abs(predict_loss(fit, run.params, run.tokens).value / run.loss - 1) for run in runs if run.params >= params
    ]
    return float(np.mean(errors))


def standard_errors(folder):
    published = {
        "E": (1.817, 0.026),
        "A": (482.01, 124.5),
        "B": (2085.43, 1293.3),
        "alpha": (0.3478, 0.0154),
        "beta": (0.3658, 0.0206),
    }
    runs = read_table(folder / "epoch_chinchilla_240.csv").observations
    fit = ParametricFitter(objective="huber", bootstrap="cases", draws=4000).fit(runs)
    print(f"objective {fit.objective:.13g}  a {fit.exponents['a']}")
    for name, (estimate, error) in published.items():
        our_error = float(np.std(fit.draws[name]))
        line = (
            f"  {name:5s} {fit.law.parameters[name]:10.6g} (published {estimate})   standard error {our_error:.4g}"
        )
        print(f"{line} (published {error}, ratio {our_error / error:.2f})")


def main():
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    parts = {"optimum": optimum, "ladder": ladder, "backtest": backtests, "errors": standard_errors}
    for part in sys.argv[2:] or parts:
        print(f"--- {part}")
        try:
            parts[part](Path(sys.argv[1]))
        except (FitError, FileNotFoundError) as error:
            print(error)


if __name__ == "__main__":
    main()
