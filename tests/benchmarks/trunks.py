"""What trunks save, and what they cost in loss: a wsd sweep beside separately tuned cosine runs.

    python tests/benchmarks/trunks.py --folder trunks [--workers 2] [--seeds 3]

The example's models on the bundled text at four budgets a factor 2 apart, each schedule at three learning rates
a factor 2 apart on the first seed. Cosine takes the best rate of every cell by itself, the trunks one rate for
all, as they must; further seeds are trained with these. Prints FLOPs with and without sharing beside the
arithmetic limit, the difference of held-out loss at each point beside the seeds' noise, and the two exponents with
the interval of their difference. Resumable: run it again after an interruption.
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
from flops_fit_core.report.numbers import exponent
from flops_fit_core.study.directory import StudyFolder

BUDGETS = [1.25e10, 2.5e10, 5e10, 1e11]
RATES = {"cosine": [0.004, 0.008, 0.016], "wsd": [0.002, 0.004, 0.008]}
"""At width 64. A trunk's best rate is about half of a cosine's (Hägele et al. 2024, section 3)."""
DECAY = 0.2


def planned(folder, schedule, rate, seeds, workers):
    table = {
        "name": f"{schedule}-{rate}",
        "sweep": {"budgets": BUDGETS, "sizes": 5, "tokens_per_param": 30, "seeds": seeds},
        "model": {"name": "gpt", "depth": 3, "head_dim": 8},
        "dataset": {"name": "text"},
        "optimizer": {"name": "adamw"},
        "recipe": {"name": "default", "lr": rate} | ({"warmup": 0.01} if schedule == "wsd" else {}),
        "schedule": {"name": schedule} | ({"decay": DECAY} if schedule == "wsd" else {}),
        "counter": {"name": "model"},
        "executor": {"name": "processes", "workers": workers},
    }
    registry = installed()
    experiment = make_experiment(table, registry)
    return Study(make_plan(experiment), registry, StudyFolder(folder / table["name"]), experiment=experiment)


def trained(study, wanted=None):
    """Results of the cells that are wanted."""
    plan = study.plan
    runs = tuple(run for run in plan.runs if wanted is None or (run.budget, run.size) in wanted)
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
    horizons = np.bincount([len(one.runs) for one in plan.trajectories])
    shared = ", ".join(f"{count} with {number}" for number, count in enumerate(horizons) if count)
    print(f"trunks by how many D share them: {shared}")
    print(f"FLOPs {plan.flops:.4g} with trunks, {without:.4g} without: {plan.flops / without:.4f}")
    print(f"arithmetic limit {limit / without:.4f}; the plan is {plan.flops / limit:.4f} times that")
    for number in sorted({len(one.runs) for one in plan.trajectories}):
        some = [one for one in plan.trajectories if len(one.runs) == number]
        spent, alone = sum(one.flops for one in some), sum(run.flops for one in some for run in one.runs)
        print(f"  {number} horizons: {spent / alone:.4f}")


def by_cell(results):
    """(budget, size) -> losses in bits per byte, one a seed."""
    cells = defaultdict(dict)
    for result in results:
        cells[result.run.budget, result.run.size][result.run.seed] = result.bits_per_byte
    return {cell: np.array([seeds[seed] for seed in sorted(seeds)]) for cell, seeds in cells.items()}


def compare(name, fitter, cosine, wsd):
    ours, theirs = (fitter.fit(observations(results)).exponents["a"] for results in (wsd, cosine))
    print(f"{name}: a {exponent(ours)} from trunks, {exponent(theirs)} from cosine runs; ", end="")
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
    given = parser.parse_args()
    first = {}
    for schedule, rates in RATES.items():
        for rate in rates:
            study = planned(given.folder, schedule, rate, [0], given.workers)
            if schedule == "wsd" and rate == rates[0]:
                print_saving(study.plan)
            first[schedule, rate] = by_cell(trained(study))
    common = sorted(set.intersection(*(set(one) for one in first.values())))
    means = {rate: np.mean([first["wsd", rate][cell][0] for cell in common]) for rate in RATES["wsd"]}
    best = min(means, key=means.get)
    print("mean bits/byte of trunks: " + ", ".join(f"lr {rate} {mean:.4f}" for rate, mean in means.items()))
    chosen = {
        cell: min(RATES["cosine"], key=lambda rate, cell=cell: first["cosine", rate][cell][0]) for cell in common
    }
    seeds = list(range(given.seeds))
    wsd = trained(planned(given.folder, "wsd", best, seeds, given.workers), set(common))
    cosine = []
    for rate in RATES["cosine"]:
        cells = {cell for cell in common if chosen[cell] == rate}
        if cells:
            cosine += trained(planned(given.folder, "cosine", rate, seeds, given.workers), cells)
    theirs_by_cell, ours_by_cell = by_cell(cosine), by_cell(wsd)
    print("  budget    size  D/D_max  cosine lr   cosine   trunk   trunk - cosine   seed sd (cosine, trunk)")
    largest = {size: max(budget for budget, other in common if other == size) for _, size in common}
    differences = defaultdict(list)
    for budget, size in common:
        theirs, ours = theirs_by_cell[budget, size], ours_by_cell[budget, size]
        share = budget / largest[size]
        differences[share].append(ours.mean() - theirs.mean())
        print(
            f"  {budget:.2g}  {size:5d}  {share:7.3f}  {chosen[budget, size]:9.3f}  {theirs.mean():7.4f} "
            f"{ours.mean():7.4f}   {ours.mean() - theirs.mean():+.4f}          {theirs.std(ddof=1):.4f} "
            f"{ours.std(ddof=1):.4f}"
        )
    for share, values in sorted(differences.items()):
        print(f"at D = {share:.3f} of the trunk's longest: mean difference {np.mean(values):+.4f} bits/byte")
    for name, cells in (("cosine", theirs_by_cell), ("trunks", ours_by_cell)):
        print(f"pooled seed sd of {name} {np.sqrt(np.mean([one.var(ddof=1) for one in cells.values()])):.4f}")
    compare("parametric", ParametricFitter(), cosine, wsd)
    compare("isoflop", IsoflopFitter(), cosine, wsd)


if __name__ == "__main__":
    main()
