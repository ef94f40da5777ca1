"""Measure the FLOPs that trunks save and their effect on the loss: a wsd sweep against tuned cosine runs.

    python tests/benchmarks/trunks.py --folder trunks [--workers 2] [--seeds 3]

The example's models on the bundled text at four budgets a factor of 2 apart. The first seed of each schedule is
trained at three learning rates a factor of 2 apart. Cosine uses the best rate of each cell; all trunks share one
rate, as they must. Further seeds use these rates. Prints the FLOPs with and without sharing and the arithmetic
limit, the difference of held-out loss at each point and the noise between seeds, and the two exponents with the
interval of their difference. After an interruption, run it again to resume.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from flops_fit_core import Study
from flops_fit_core.config import make_experiment
from flops_fit_core.fitting import IsoflopFitter, ParametricFitter, observations
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins.registry import installed
from flops_fit_core.report.datatable import show_exponent
from flops_fit_core.study.directory import StudyFolder

BUDGETS = [1.25e10, 2.5e10, 5e10, 1e11]
RATES = {"cosine": [0.004, 0.008, 0.016], "wsd": [0.002, 0.004, 0.008]}
"""At width 64. A trunk's best rate is about half of a cosine's (Hägele et al. 2024, section 3)."""
DECAY = 0.2


def make_study(folder, schedule, rate, seeds, workers):
    table = {
        "name": f"{schedule}-{rate}",
        "sweep": {"budgets": BUDGETS, "sizes": 5, "tokens_per_param": 30, "seeds": seeds},
        "model": {"name": "gpt", "depth": 3, "head_dim": 8},
        "dataset": {"name": "text"},
        "optimizer": {"name": "adamw"},
        "recipe": {"name": "width-scaled", "lr": rate} | ({"warmup": 0.01} if schedule == "wsd" else {}),
        "schedule": {"name": schedule} | ({"decay": DECAY} if schedule == "wsd" else {}),
        "counter": {"name": "model"},
        "executor": {"name": "processes", "workers": workers},
    }
    registry = installed()
    experiment = make_experiment(table, registry)
    return Study(make_plan(experiment), registry, StudyFolder(folder / table["name"]), experiment=experiment)


def train_cells(study, cells=None):
    """Train and return results of ``cells``, by default all."""
    plan = study.plan
    runs = tuple(run for run in plan.runs if cells is None or (run.budget, run.size) in cells)
    part = Study(plan.model_copy(update={"runs": runs}), study.registry, study.folder, experiment=study.experiment)
    results = part.train()
    print(f"{plan.name}: {len(results)} results", flush=True)
    return results


def print_saving(plan):
    limit = 0.0
    for trajectory in plan.trajectories:
        tokens = [run.tokens for run in trajectory.runs]
        limit += trajectory.runs[0].flops_per_token * ((1 - DECAY) * max(tokens) + DECAY * sum(tokens))
    without = plan.flops_without_sharing
    horizons = np.bincount([len(trajectory.runs) for trajectory in plan.trajectories])
    shared = ", ".join(f"{count} with {number}" for number, count in enumerate(horizons) if count)
    print(f"trunks by number of D that share them: {shared}")
    print(f"FLOPs {plan.flops:.4g} with trunks, {without:.4g} without: {plan.flops / without:.4f}")
    print(f"arithmetic limit {limit / without:.4f}; the plan is {plan.flops / limit:.4f} times that")
    for number in sorted({len(trajectory.runs) for trajectory in plan.trajectories}):
        trajectories = [trajectory for trajectory in plan.trajectories if len(trajectory.runs) == number]
        shared_flops = sum(trajectory.flops for trajectory in trajectories)
        separate_flops = sum(run.flops for trajectory in trajectories for run in trajectory.runs)
        print(f"  {number} horizons: {shared_flops / separate_flops:.4f}")


def by_cell(results):
    """(budget, size) -> losses in bits per byte, one per seed."""
    cells = defaultdict(dict)
    for result in results:
        cells[result.run.budget, result.run.size][result.run.seed] = result.bits_per_byte
    return {cell: np.array([seeds[seed] for seed in sorted(seeds)]) for cell, seeds in cells.items()}


def compare(name, fitter, cosine, wsd):
    ours, theirs = (fitter.fit(observations(results)).exponents["a"] for results in (wsd, cosine))
    print(f"{name}: a {show_exponent(ours)} from trunks, {show_exponent(theirs)} from cosine runs; ", end="")
    if ours.low is None or theirs.low is None:
        print(f"difference {ours.value - theirs.value:+.3f}, without an interval")
        return
    spread = np.hypot((ours.high - ours.low) / 2, (theirs.high - theirs.low) / 2)
    print(f"difference {ours.value - theirs.value:+.3f} +- {spread:.3f} (90%)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    first = {}
    for schedule, rates in RATES.items():
        for rate in rates:
            study = make_study(arguments.folder, schedule, rate, [0], arguments.workers)
            if schedule == "wsd" and rate == rates[0]:
                print_saving(study.plan)
            first[schedule, rate] = by_cell(train_cells(study))
    common = sorted(set.intersection(*(set(cells) for cells in first.values())))
    means = {rate: np.mean([first["wsd", rate][cell][0] for cell in common]) for rate in RATES["wsd"]}
    best = min(means, key=means.get)
    print("mean bits/byte of trunks: " + ", ".join(f"lr {rate} {mean:.4f}" for rate, mean in means.items()))
    chosen = {
        cell: min(RATES["cosine"], key=lambda rate, cell=cell: first["cosine", rate][cell][0]) for cell in common
    }
    seeds = list(range(arguments.seeds))
    wsd = train_cells(make_study(arguments.folder, "wsd", best, seeds, arguments.workers), set(common))
    cosine = []
    for rate in RATES["cosine"]:
        cells = {cell for cell in common if chosen[cell] == rate}
        if cells:
            cosine += train_cells(make_study(arguments.folder, "cosine", rate, seeds, arguments.workers), cells)
    theirs_by_cell, ours_by_cell = by_cell(cosine), by_cell(wsd)
    print("  budget    size  D/D_max  cosine lr   cosine   trunk   trunk - cosine   sd of seeds (cosine, trunk)")
    largest_budgets = {}
    for budget, size in common:
        largest_budgets[size] = max(budget, largest_budgets.get(size, 0.0))
    differences = defaultdict(list)
    for budget, size in common:
        theirs, ours = theirs_by_cell[budget, size], ours_by_cell[budget, size]
        share = budget / largest_budgets[size]
        differences[share].append(ours.mean() - theirs.mean())
        print(
            f"  {budget:.2g}  {size:5d}  {share:7.3f}  {chosen[budget, size]:9.3f}  {theirs.mean():7.4f} "
            f"{ours.mean():7.4f}   {ours.mean() - theirs.mean():+.4f}          {theirs.std(ddof=1):.4f} "
            f"{ours.std(ddof=1):.4f}"
        )
    for share, values in sorted(differences.items()):
        print(
            f"at D = {share:.3f} of the longest D of the trunk: mean difference {np.mean(values):+.4f} bits/byte"
        )
    for name, cells in (("cosine", theirs_by_cell), ("trunks", ours_by_cell)):
        print(
            f"pooled seed sd of {name} {np.sqrt(np.mean([losses.var(ddof=1) for losses in cells.values()])):.4f}"
        )
    compare("parametric", ParametricFitter(), cosine, wsd)
    compare("isoflop", IsoflopFitter(), cosine, wsd)


if __name__ == "__main__":
    main()
