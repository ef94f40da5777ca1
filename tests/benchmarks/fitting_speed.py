"""Speed of the fits, on one core: CPU seconds.

    OMP_NUM_THREADS=1 python tests/benchmarks/fitting_speed.py [TABLE] [--starts 45] [--chinchilla]

TABLE is a CSV file of runs. Without it, 240 runs are simulated on Chinchilla's surface with 0.7% noise. Our Huber
fit is compared with Hoffmann et al.'s 4,500 starts of L-BFGS-B in scipy: ``--starts`` of them run, and the time is
scaled up. With --chinchilla, it is also compared with the package chinchilla 0.2.0, if installed: 16 of the 3,125
starts of its README run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

sys.path.insert(0, str(Path(__file__).parents[1] / "fitting"))

from surfaces import CHINCHILLA, study

from flops_fit_core.fitting import ParametricFitter, read_table
from flops_fit_core.fitting.solvers.newton import ChinchillaProblem
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares
from flops_fit_core.fitting.solvers.surface_fit import fit_surface, make_problem, refit

GRID = (range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5))


def problem_of(runs):
    return make_problem(*(np.log([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss")))


def timed(call, repeats=5):
    """Minimum CPU seconds of some repeats, and the last result."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
    return best, result


def hoffmann(runs, count):
    """Seconds for all 4,500 starts, scaled from ``count`` of them, and the lowest objective."""
    ln_n, ln_d, ln_l = (np.log([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss"))

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * ln_n, b - beta * ln_d, np.full_like(ln_n, e)])
        prediction = logsumexp(terms, axis=0)
        gradient, share = np.clip(prediction - ln_l, -1e-3, 1e-3), np.exp(terms - prediction)
        slopes = [share[0], share[1], share[2], -ln_n * share[0], -ln_d * share[1]]
        return huber(1e-3, prediction - ln_l).sum(), np.array([gradient @ slope for slope in slopes])

    grid = list(itertools.product(*GRID))
    starts = [grid[index] for index in np.random.default_rng(0).choice(len(grid), count, replace=False)]
    started = time.process_time()
    best = min(minimize(objective, start, jac=True, method="L-BFGS-B").fun for start in starts)
    return (time.process_time() - started) * len(grid) / count, best


def time_chinchilla_package(runs):
    """CPU seconds of chinchilla 0.2.0 with its log-Huber loss for its README's 3,125 starts, scaled from 16."""
    import functools
    import resource
    import tempfile

    import pandas
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    grid = {"E": (1.1, 1.5), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.4,)}
    with tempfile.TemporaryDirectory() as folder:
        package = Chinchilla(
            folder,
            param_grid=grid,
            seed_ranges={"C": (1e18, 1e21), "N_to_D": (10, 100)},
            loss_fn=functools.partial(log_huber, delta=1e-3),
            num_seeding_steps=0,
            scaling_factor=10.0,
        )
        package.database.df = pandas.DataFrame(
            [{"C": run.flops, "N": run.params, "D": run.tokens, "loss": run.loss} for run in runs]
        )
        before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        package.fit(parallel=False)
        after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(b.ru_utime - a.ru_utime for a, b in zip(before, after, strict=True))
    return seconds * 3125 / 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--starts", type=int, default=45)
    parser.add_argument("--chinchilla", action="store_true")
    arguments = parser.parse_args()
    runs = (
        read_table(arguments.table).observations
        if arguments.table
        else study(CHINCHILLA, np.geomspace(1e18, 1e22, 16), np.geomspace(1 / 8, 8, 15), sigma=0.007)
    )
    problem = problem_of(runs)
    random = np.random.default_rng(0)
    ours = {}
    for objective in (LeastSquares(), Huber()):
        seconds, fit = timed(lambda objective=objective: fit_surface(problem, objective))
        ours[objective.name] = seconds
        label = f"one full {objective.name} fit of {len(runs)} runs"
        print(f"{label}: {seconds * 1e3:.1f} ms, objective {fit.value:.12g}")
        errors = fit.residuals[random.integers(len(runs), size=(1000, len(runs)))]
        resampled = ChinchillaProblem(problem.u, problem.v, problem.y - fit.residuals + errors)
        seconds, solved = timed(lambda: refit(resampled, fit.theta, objective), 3)  # noqa: B023
        print(f"  1,000 refits: {seconds:.3f} s, converged {solved.converged.mean():.1%}")
    large_study = study(CHINCHILLA, np.geomspace(1e17, 1e21, 250), np.geomspace(1 / 16, 16, 100), sigma=0.01)
    columns = problem_of(large_study)
    for objective in (LeastSquares(), Huber()):
        seconds, _ = timed(lambda objective=objective: fit_surface(columns, objective), 2)
        print(f"one {objective.name} fit of {len(large_study)} runs: {seconds:.3f} s")
    seconds, _ = timed(lambda: ParametricFitter().fit(runs), 2)
    print(f"the default fitter, 1,000 draws and diagnostics: {seconds:.2f} s")
    seconds, best = hoffmann(runs, arguments.starts)
    print(f"4,500 starts of L-BFGS-B: {seconds:.0f} s (from {arguments.starts}), best objective {best:.12g}")
    print(f"  relative to our Huber fit: {seconds / ours['Huber']:.0f} x")
    if arguments.chinchilla and importlib.util.find_spec("chinchilla") is None:
        print("chinchilla is not installed: pip install chinchilla==0.2.0")
    elif arguments.chinchilla:
        seconds = time_chinchilla_package(runs)
        print(f"chinchilla 0.2.0: {seconds:.0f} s; relative to our Huber fit: {seconds / ours['Huber']:.0f} x")


if __name__ == "__main__":
    main()
