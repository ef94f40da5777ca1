"""Shared stable phases (trunks) of a sweep, and their hyperparameters."""

from __future__ import annotations

from typing import Any

from flops_fit_core import numbers
from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.errors import PluginError
from flops_fit_core.flops.model_stats import SizeStats
from flops_fit_core.plugins.protocols import RunInfo
from flops_fit_core.plugins.specs import ScheduleSpec
from flops_fit_core.records import Hyperparameters

FLOAT = 4
"""Bytes of a weight, and of each number that an optimizer stores per weight."""
REFERENCE_SHARE = 0.3
"""A trunk's recipe is evaluated at this share of the expected D of its size. A batch that is too large for short
branches costs more than a batch that is too small for long branches (measured in docs/training.md)."""


class SharedPhases:
    """The shared stable phases (trunks) of a sweep.

    Runs with equal size, seed and options form a trajectory: a trunk that is trained once, and a decay that
    branches off for each D. Batch size, learning rate, weight decay and warmup belong to the trunk, so the recipe
    is evaluated at one D per size, not at the D of each run.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        can_branch = experiment.schedule.spec.branch is not None and "branch" in experiment.trainer.spec.can
        self.shared = experiment.sweep.share_stable_phase and can_branch
        self.checkpoint_bytes = 0
        self._ratios: dict[str, list[float]] = {}

    def reference_tokens(self, stats: SizeStats) -> float | None:
        """D at which the recipe is evaluated for a size; None if it is evaluated at the D of each run."""
        if not self.shared:
            return None
        sweep = self.experiment.sweep
        return sweep.reference_tokens or REFERENCE_SHARE * sweep.tokens_per_param * stats.params

    def branch_step(self, schedule: PluginConfig[ScheduleSpec], run: RunInfo) -> int | None:
        """Number of steps in the run's trunk; None if nothing is shared.

        Raises PluginError for a schedule with an invalid branch step.
        """
        if not self.shared or schedule.spec.branch is None:
            return None
        step = schedule.call(schedule.spec.branch, schedule.options, run)
        if not (isinstance(step, int) and 1 <= step <= run.steps):
            raise PluginError(f"schedule {schedule.name!r} branches off at step {step!r} of {run.steps}")
        return step

    def add_branch(self, trunk: Hyperparameters, separate: Hyperparameters, stats: SizeStats) -> None:
        """Add a run to the statistics of :meth:`notes` and to ``checkpoint_bytes``.

        Args:
            trunk: Hyperparameters of the trunk.
            separate: Hyperparameters that the recipe gives the run without a trunk.
            stats: The size of the run.
        """
        values: dict[str, tuple[Any, Any]] = {
            "batch": (trunk.batch_size, separate.batch_size),
            "learning rate": (trunk.lr, separate.lr),
            "weight decay": (trunk.weight_decay, separate.weight_decay),
            "warmup": (trunk.warmup_tokens, separate.warmup_tokens),
        }
        for name, (shared_value, separate_value) in values.items():
            if shared_value and separate_value:
                self._ratios.setdefault(name, []).append(shared_value / separate_value)
        # weights and one or two moments
        numbers = 2 if self.experiment.optimizer.spec.width_scaling == "none" else 3
        self.checkpoint_bytes += numbers * FLOAT * stats.parameters.total * len(self.experiment.sweep.seeds)

    def notes(self) -> list[str]:
        """A note on the hyperparameters of shared trunks, compared with those of separate runs."""
        if not self.shared:
            return []
        sweep = self.experiment.sweep
        reference = (
            f"{numbers.count(sweep.reference_tokens)} tokens (sweep.reference_tokens)"
            if sweep.reference_tokens
            else f"{REFERENCE_SHARE * sweep.tokens_per_param:g} tokens per parameter of each size "
            f"({REFERENCE_SHARE:g} times sweep.tokens_per_param)"
        )
        differences = [
            f"{name} {min(ratios):.2g} to {max(ratios):.2g}"
            for name, ratios in self._ratios.items()
            if max(ratios) > 1.005 or min(ratios) < 0.995
        ]
        text = (
            f"runs of one size share a stable phase; recipe {self.experiment.recipe.name!r} is evaluated at "
            f"{reference}"
        )
        if differences:
            text += f". Ratio to its values at each run's D: {', '.join(differences)}"
        return [text]
