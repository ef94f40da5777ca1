"""Speed of the fits, on one core: CPU seconds.

    OMP_NUM_THREADS=1 python tests/benchmarks/fitting_speed.py [TABLE] [--starts 45] [--chinchilla]

TABLE is a CSV of runs; without one, 240 runs are simulated on Chinchilla's surface with 0.7% noise. Beside
our Huber fit: Hoffmann et al.'s 4,500 starts of L-BFGS-B with scipy, of which ``--starts`` are run and the
time is scaled up; and, with --chinchilla, the package chinchilla 0.2.0 where it is installed (16 of the
3,125 starts of its README are run).
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
from flops_fit_core.fitting.laws.chinchilla import fit_surface, make_problem, refit
from flops_fit_core.fitting.solvers.newton import Problem
from flops_fit_core.fitting.solvers.objectives import Huber, LeastSquares

GRID = (range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5))


def problem_of(runs):
    return make_problem(*(np.log([getattr(one, name) for one in runs]) for name in ("params", "tokens", "loss")))


def timed(call, repeats=5):
    """The least CPU seconds of some repeats, and the last result."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
    return best, result


def hoffmann(runs, count):
    """Seconds for all 4,500 starts, and the lowest objective of those that were run."""
    ln_n, ln_d, ln_l = (np.log([getattr(one, name) for one in runs]) for name in ("params", "tokens", "loss"))

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * ln_n, b - beta * ln_d, np.full_like(ln_n, e)])
        whole = logsumexp(terms, axis=0)
        pull, share = np.clip(whole - ln_l, -1e-3, 1e-3), np.exp(terms - whole)
        slopes = [share[0], share[1], share[2], -ln_n * share[0], -ln_d * share[1]]
        return huber(1e-3, whole - ln_l).sum(), np.array([pull @ slope for slope in slopes])

    every = list(itertools.product(*GRID))
    chosen = [every[index] for index in np.random.default_rng(0).choice(len(every), count, replace=False)]
    start = time.process_time()
    best = min(minimize(objective, one, jac=True, method="L-BFGS-B").fun for one in chosen)
    return (time.process_time() - start) * len(every) / count, best


def package(runs):
    """CPU seconds of chinchilla 0.2.0 for its README's 3,125 starts, scaled from 16, by its log-Huber loss."""
    import functools
    import resource
    import tempfile

    import pandas
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    ends = {"E": (1.1, 1.5), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.4,)}
    with tempfile.TemporaryDirectory() as folder:
        tool = Chinchilla(
            folder,
            param_grid=ends,
            seed_ranges={"C": (1e18, 1e21), "N_to_D": (10, 100)},
            loss_fn=functools.partial(log_huber, delta=1e-3),
            num_seeding_steps=0,
            scaling_factor=10.0,
        )
        tool.database.df = pandas.DataFrame(
            [{"C": one.flops, "N": one.params, "D": one.tokens, "loss": one.loss} for one in runs]
        )
        before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        tool.fit(parallel=False)
        after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(b.ru_utime - a.ru_utime for a, b in zip(before, after, strict=True))
    return seconds * 3125 / 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path)
    parser.add_argument("--starts", type=int, default=45)
    parser.add_argument("--chinchilla", action="store_true")
    given = parser.parse_args()
    runs = (
        read_table(given.table).observations
        if given.table
        else study(CHINCHILLA, np.geomspace(1e18, 1e22, 16), np.geomspace(1 / 8, 8, 15), sigma=0.007)
    )
    problem = problem_of(runs)
    random = np.random.default_rng(0)
    ours = {}
    for objective in (LeastSquares(), Huber()):
        seconds, fit = timed(lambda objective=objective: fit_surface(problem, objective))
        ours[objective.name] = seconds
        about = f"one full {objective.name} fit of {len(runs)} runs"
        print(f"{about}: {seconds * 1e3:.1f} ms, objective {fit.value:.12g}")
        errors = fit.residuals[random.integers(len(runs), size=(1000, len(runs)))]
        drawn = Problem(problem.u, problem.v, problem.y - fit.residuals + errors)
        seconds, solved = timed(lambda: refit(drawn, fit.theta, objective), 3)  # noqa: B023
        print(f"  1,000 refits: {seconds:.3f} s, converged {solved.converged.mean():.1%}")
    many = study(CHINCHILLA, np.geomspace(1e17, 1e21, 250), np.geomspace(1 / 16, 16, 100), sigma=0.01)
    columns = problem_of(many)
    for objective in (LeastSquares(), Huber()):
        seconds, _ = timed(lambda objective=objective: fit_surface(columns, objective), 2)
        print(f"one {objective.name} fit of {len(many)} runs: {seconds:.3f} s")
    seconds, _ = timed(lambda: ParametricFitter().fit(runs), 2)
    print(f"the default fitter, 1,000 draws and diagnostics: {seconds:.2f} s")
    seconds, best = hoffmann(runs, given.starts)
    print(f"4,500 starts of L-BFGS-B: {seconds:.0f} s (from {given.starts}), best objective {best:.12g}")
    print(f"  over our Huber fit: {seconds / ours['Huber']:.0f} x")
    if given.chinchilla and importlib.util.find_spec("chinchilla") is None:
        print("chinchilla is not installed: pip install chinchilla==0.2.0")
    elif given.chinchilla:
        seconds = package(runs)
        print(f"chinchilla 0.2.0: {seconds:.0f} s; over our Huber fit: {seconds / ours['Huber']:.0f} x")


if __name__ == "__main__":
    main()
