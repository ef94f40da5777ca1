"""Whether a sweep's runs share trunks, and what that asks of their hyperparameters."""

from __future__ import annotations

from typing import Any

from flops_fit_core.config import Experiment, PluginConfig
from flops_fit_core.errors import PluginError
from flops_fit_core.flops.model_stats import SizeStats
from flops_fit_core.plugins.protocols import RunInfo
from flops_fit_core.plugins.specs import ScheduleSpec
from flops_fit_core.records import Hyperparameters

FLOAT = 4
"""Bytes of a weight, and of each number that an optimizer keeps about it."""
SHORT = 0.3
"""A trunk's recipe is asked at this part of the D around which its size is used: too large a batch costs short
branches more than too small a one costs long branches (docs/training.md has the measurement)."""


class Trunks:
    """The trunks of one sweep.

    Runs of one size, seed and equal options are one trajectory: a trunk that is trained once, from which a
    decay branches off at each D. Batch, learning rate, weight decay and warmup belong to the trunk, so a recipe
    is asked for them at one D of the size, not at each run's own.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        can = "branch" in experiment.trainer.spec.can
        self.shared = experiment.sweep.share_stable_phase and experiment.schedule.spec.branch is not None and can
        self.checkpoint_bytes = 0
        self._ratios: dict[str, list[float]] = {}

    def reference_tokens(self, measured: SizeStats) -> float | None:
        """D at which the recipe is evaluated for a size; None where each run's own D is."""
        if not self.shared:
            return None
        sweep = self.experiment.sweep
        return sweep.reference_tokens or SHORT * sweep.tokens_per_param * measured.params

    def branch_step(self, schedule: PluginConfig[ScheduleSpec], run: RunInfo) -> int | None:
        """Steps of the run that are its trunk's; None where nothing is shared. Raises PluginError."""
        if not self.shared or schedule.spec.branch is None:
            return None
        step = schedule.call(schedule.spec.branch, schedule.options, run)
        if not (isinstance(step, int) and 1 <= step <= run.steps):
            raise PluginError(f"schedule {schedule.name!r} branches off at step {step!r} of {run.steps}")
        return step

    def add_branch(self, trunk: Hyperparameters, own: Hyperparameters, measured: SizeStats) -> None:
        """Take note of what the recipe gives a trunk and would give this run alone, and of its checkpoint."""
        values: dict[str, tuple[Any, Any]] = {
            "batch": (trunk.batch_size, own.batch_size),
            "learning rate": (trunk.lr, own.lr),
            "weight decay": (trunk.weight_decay, own.weight_decay),
            "warmup": (trunk.warmup_tokens, own.warmup_tokens),
        }
        for name, (shared, wanted) in values.items():
            if shared and wanted:
                self._ratios.setdefault(name, []).append(shared / wanted)
        kept = 2 if self.experiment.optimizer.spec.width_scaling == "none" else 3
        self.checkpoint_bytes += kept * FLOAT * measured.parameters.total * len(self.experiment.sweep.seeds)

    def notes(self) -> list[str]:
        """What a person should know of the trunks."""
        if not self.shared:
            return []
        sweep = self.experiment.sweep
        at = (
            f"{sweep.reference_tokens:.3g} tokens (sweep.reference_tokens)"
            if sweep.reference_tokens
            else f"{SHORT * sweep.tokens_per_param:g} tokens a parameter of each size ({SHORT:g} times "
            f"sweep.tokens_per_param)"
        )
        far = [
            f"{name} {min(ratios):.2g} to {max(ratios):.2g}"
            for name, ratios in self._ratios.items()
            if max(ratios) > 1.005 or min(ratios) < 0.995
        ]
        text = f"runs of one size share a trunk; recipe {self.experiment.recipe.name!r} is evaluated at {at}"
        if far:
            text += f". Of what it gives at the runs' own D, they have: {', '.join(far)} times"
        return [text]
