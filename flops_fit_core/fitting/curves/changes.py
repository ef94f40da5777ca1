"""The changes of a learning rate before each evaluation, compressed into few nodes per evaluation.

The decay term of a curve law is a sum over all changes of the rate before an evaluation. Stretches of constant
rate contribute nothing and have no node. A jump is a node. A gradual change is cut into blocks, and a block
becomes a node at the weighted mean of its changes, so that errors are of second order in the block's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flops_fit_core.fitting.curves.rates import Integers, LearningRates
from flops_fit_core.fitting.data import Floats

BLOCK = 1 / 8
"""Length of a block divided by its distance from the evaluation. Shorter blocks near the evaluation are exact."""
RATE_CELL = 1 / 8
"""A block ends where ln(rate) enters another cell of this width."""
MAX_BORDERS = 400
LOWEST_RATE = 1e-6
"""Rates below this share of the peak count as this share in powers of the rate."""


@dataclass(frozen=True)
class RateChanges:
    """The evaluations of a curve, and the changes of the rate before each, as arrays over nodes.

    Rates are divided by ``peak``, so sums of rates are numbers of updates at the peak.
    """

    sums: Floats
    """Shape (evaluations,): sum of the rates of all updates before each evaluation."""
    evaluation: Integers
    """Shape (nodes,): index of the evaluation, in increasing order."""
    drop: Floats
    """Shape (nodes,): rate before the change minus rate after it; negative in a warmup."""
    log_sum: Floats
    """Shape (nodes,): ln of the sum of the rates from the change to the evaluation."""
    log_rate: Floats
    """Shape (nodes,): ln of the rate after the change."""
    updates: Floats
    """Shape (nodes,): number of updates from the change to the evaluation."""

    @classmethod
    def of(cls, rates: LearningRates, steps: Integers, peak: float, *, block: float = BLOCK) -> RateChanges:
        """The changes before each evaluation at ``steps`` (numbers of updates, from 1 to ``rates.steps``).

        ``block=0`` makes each change a node.
        """
        prefix = _PrefixSums(rates.values / peak)
        edges = prefix.block_edges(steps, block)
        parts = [prefix.nodes(steps, edges, sign) for sign in (1, -1)]
        order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
        evaluation, drop, log_sum, log_rate, updates = (
            np.concatenate(column)[order] for column in zip(*parts, strict=True)
        )
        return cls(prefix.sums[steps], evaluation, drop, log_sum, log_rate, updates)

    @cached_property
    def _starts(self) -> Integers:
        """The first node of each evaluation that has nodes."""
        return np.flatnonzero(np.diff(self.evaluation, prepend=-1))

    def total(self, values: Floats) -> Floats:
        """Sum of values (nodes, columns) over the nodes of each evaluation; shape (evaluations, columns)."""
        totals = np.zeros((len(self.sums), values.shape[1]))
        if len(values):
            totals[self.evaluation[self._starts]] = np.add.reduceat(values, self._starts, axis=0)
        return totals


class _PrefixSums:
    """Sums over the first k changes, from which the weighted means of any block follow by differences."""

    def __init__(self, rates: Floats) -> None:
        self.sums = np.concatenate([[0.0], np.cumsum(rates)])
        self._log_rates = np.log(np.maximum(rates, LOWEST_RATE))
        self._drops = np.zeros(len(rates))
        self._drops[1:] = rates[:-1] - rates[1:]

    def block_edges(self, steps: Integers, block: float) -> Integers:
        """Edges of the blocks of each evaluation, shape (evaluations, edges): increasing numbers of updates."""
        longest = int(steps.max())
        if block == 0:
            return np.minimum(np.arange(longest + 1)[None, :], steps[:, None])
        distances = [0, 1]
        while distances[-1] < longest:
            distances.append(max(distances[-1] + 1, int(distances[-1] * (1 + block))))
        by_distance = np.maximum(steps[:, None] - np.array(distances)[None, :], 0)
        by_rate = np.minimum(self._cell_edges(longest)[None, :], steps[:, None])
        return np.sort(np.concatenate([by_distance, by_rate], axis=1), axis=1)

    def _cell_edges(self, end: int) -> Integers:
        """Updates at which ln(rate) enters another cell. Cells are wider if the rate oscillates."""
        width = RATE_CELL
        while True:
            cells = np.floor(self._log_rates[:end] / width)
            borders = np.flatnonzero(np.diff(cells)) + 1
            if len(borders) <= MAX_BORDERS:
                return np.unique(np.concatenate([borders, borders + 1]))
            width *= 2

    def nodes(
        self, steps: Integers, edges: Integers, sign: int
    ) -> tuple[Integers, Floats, Floats, Floats, Floats]:
        """Nodes of the falls (sign 1) or the rises (sign -1) of the rate.

        Falls and rises are separate, as a mean with weights of both signs may lie outside its block.
        """
        size = np.maximum(sign * self._drops, 0.0)
        numbers = np.arange(len(size))
        quantities = (np.ones(len(size)), self.sums[:-1], self._log_rates, numbers.astype(np.float64))
        totals = [np.concatenate([[0.0], np.cumsum(size * quantity)]) for quantity in quantities]
        blocks = [total[edges[:, 1:]] - total[edges[:, :-1]] for total in totals]
        used = blocks[0] > 1e-13 * max(totals[0][-1], 1e-300)
        evaluation, _ = np.nonzero(used)
        weight = blocks[0][used]
        sum_before, log_rate, number = (values[used] / weight for values in blocks[1:])
        sums = np.maximum(self.sums[steps][evaluation] - sum_before, 1e-300)
        return evaluation, sign * weight, np.log(sums), log_rate, steps[evaluation] - number
