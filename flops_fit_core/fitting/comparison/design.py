"""The runs of two recipes as arrays, and the groups of runs that share noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flops_fit_core.errors import FitError
from flops_fit_core.fitting.data import Floats, Ints, Runs
from flops_fit_core.records import Observation

MIN_RUNS = 3
"""The fewest runs per recipe."""
TOLERANCE = 0.005
"""N, and D, of runs in one cell differ by less than this share from the next smaller value."""


@dataclass(frozen=True)
class Design:
    """The runs of both recipes, those of the first recipe first. All arrays have one entry per run."""

    runs: Runs
    second: Floats
    """1 for runs of the second recipe, otherwise 0."""
    cells: Ints
    """Runs with equal entries have the same N and D."""
    groups: dict[str, Ints]
    """Name of a source of shared noise -> its groups: runs with equal entries share a draw of this noise."""

    @property
    def ln_size(self) -> Floats:
        """Ln of FLOPs per token / 6. It replaces N, so that C = 6 N D holds exactly for each recipe."""
        size: Floats = np.log(self.runs.flops / (6 * self.runs.tokens))
        return size

    @property
    def ln_tokens(self) -> Floats:
        tokens: Floats = np.log(self.runs.tokens)
        return tokens

    @property
    def ln_loss(self) -> Floats:
        loss: Floats = np.log(self.runs.loss)
        return loss

    @property
    def ln_flops(self) -> Floats:
        flops: Floats = np.log(self.runs.flops)
        return flops

    def __len__(self) -> int:
        return len(self.second)

    def take(self, rows: Ints) -> Design:
        """The design with these runs only."""
        return make_design(self.runs.take(rows), self.second[rows])

    def count_pairs(self) -> int:
        """Number of pairs of runs, one per recipe, with equal N, D and seed."""
        seeds = np.array([-1 if seed is None else seed for seed in self.runs.seeds])
        known = np.array([seed is not None for seed in self.runs.seeds])
        keys = [
            {(int(cell), int(seed)) for cell, seed in zip(self.cells[rows], seeds[rows], strict=True)}
            for rows in (known & (self.second == 0), known & (self.second == 1))
        ]
        return len(keys[0] & keys[1])

    def count_shared_cells(self) -> int:
        """Number of (N, D) cells that both recipes have."""
        return len(set(self.cells[self.second == 0].tolist()) & set(self.cells[self.second == 1].tolist()))


def join_runs(first: Sequence[Observation], second: Sequence[Observation]) -> Design:
    """The runs of both recipes. Raises FitError if a recipe has fewer than three."""
    for label, observations in (("first", first), ("second", second)):
        if len(observations) < MIN_RUNS:
            raise FitError(
                f"the {label} recipe has {len(observations)} completed runs: a comparison needs at least "
                f"{MIN_RUNS} per recipe, preferably 4 sizes with 2 seeds each"
            )
    named = [
        run.model_copy(
            update={"id": f"{label}: {run.id}", "trajectory": run.trajectory and f"{label}: {run.trajectory}"}
        )
        for label, observations in (("A", first), ("B", second))
        for run in observations
    ]
    return make_design(Runs.of(named), np.repeat([0.0, 1.0], [len(first), len(second)]))


def make_design(runs: Runs, second: Floats) -> Design:
    """Find the cells, and the groups of runs that may share noise.

    * ``pair``: equal (N, D) and seed in both recipes: the same initial weights and data. If a recipe has no seeds,
      equal (N, D).
    * ``trunk``: runs of one recipe that share a stable phase.
    * ``trunk pair``: runs of both recipes with equal N and seed, if runs share a stable phase.

    A source is left out if its groups have one run each, or equal those of an earlier source.
    """
    sizes, tokens = cluster(np.log(runs.params)), cluster(np.log(runs.tokens))
    cells = number([sizes, tokens])
    pair_labels = pair_runs(runs, second, cells)
    trunks = np.unique(np.array(runs.trunks), return_inverse=True)[1].ravel()
    shares_trunk = len(np.unique(trunks)) < len(trunks)
    sources = {"pair": pair_labels, "trunk": trunks}
    if shares_trunk:
        sources["trunk pair"] = pair_runs(runs, second, sizes)
    groups: dict[str, Ints] = {}
    for name, labels in sources.items():
        is_new = all(
            len(np.unique(number([labels, other]))) > max(labels.max(), other.max()) + 1
            for other in groups.values()
        )
        if len(np.unique(labels)) < len(labels) and (is_new or not groups):
            groups[name] = labels
    return Design(runs, second, cells, groups)


def pair_runs(runs: Runs, second: Floats, cells: Ints) -> Ints:
    """Number the groups of runs of both recipes with equal cell and seed; other runs have their own group."""
    has_seed = np.array([seed is not None for seed in runs.seeds])
    if all(has_seed[second == recipe].any() for recipe in (0, 1)):
        # A run without a seed is in no pair: a negative number, different for each run, replaces its seed.
        seeds = np.array([-1 - row if seed is None else seed for row, seed in enumerate(runs.seeds)])
        labels = number([cells, seeds])
    else:
        labels = cells.copy()
    common = np.intersect1d(labels[second == 0], labels[second == 1])
    is_single = ~np.isin(labels, common)
    labels[is_single] = labels.max() + 1 + np.arange(is_single.sum())
    return np.unique(labels, return_inverse=True)[1].ravel()


def cluster(values: Floats) -> Ints:
    """Number the clusters of values: a cluster ends where the next value is more than TOLERANCE larger."""
    order = np.argsort(values)
    steps = np.diff(values[order]) > TOLERANCE
    labels = np.empty(len(values), dtype=np.intp)
    labels[order] = np.concatenate([[0], np.cumsum(steps)])
    return labels


def number(columns: Sequence[Ints]) -> Ints:
    """Number the distinct rows of some columns."""
    labels: Ints = np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel()
    return labels
