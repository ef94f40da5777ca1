"""Hooks for how a run is trained, and how its FLOPs are counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.plugins.specs import FlopCounterSpec, OptimizerSpec, RecipeSpec, ScheduleSpec, TrainerSpec


@hookspec
def flops_fit_optimizers() -> Iterable[OptimizerSpec]:
    """Offer optimizers: ``[optimizer]`` in an experiment.

    ::

        from flops_fit_core.plugins import OptimizerSpec, Options, hookimpl

        class RMSpropOptions(Options):
            lr: float = 0.001
            weight_decay: float = 0.0

        def build_rmsprop(options, model, run):
            import torch

            return torch.optim.RMSprop(run.param_groups(model, options.lr, options.weight_decay))

        @hookimpl
        def flops_fit_optimizers():
            yield OptimizerSpec(
                name="rmsprop", options=RMSpropOptions, build=build_rmsprop, width_scaling="adam"
            )
    """
    return ()


@hookspec
def flops_fit_schedules() -> Iterable[ScheduleSpec]:
    """Offer learning-rate schedules: ``[schedule]`` in an experiment.

    ::

        from flops_fit_core.plugins import ScheduleSpec, hookimpl

        def build_linear(options, run):
            return lambda step: 1 - step / run.steps

        @hookimpl
        def flops_fit_schedules():
            yield ScheduleSpec(name="linear-to-zero", build=build_linear)
    """
    return ()


@hookspec
def flops_fit_recipes() -> Iterable[RecipeSpec]:
    """Offer recipes, which choose the hyperparameters that the user left unset: ``[recipe]``.

    ::

        from flops_fit_core import Hyperparameters
        from flops_fit_core.plugins import RecipeSpec, hookimpl

        def build_big_batches(options, about):
            return Hyperparameters(batch_size=max(1, round(about.tokens**0.5 / about.task.tokens_per_sample)))

        @hookimpl
        def flops_fit_recipes():
            yield RecipeSpec(name="big-batches", build=build_big_batches)
    """
    return ()


@hookspec
def flops_fit_flop_counters() -> Iterable[FlopCounterSpec]:
    """RegisteredSpec FLOPs counters: ``[counter]`` in an experiment.

    ::

        from flops_fit_core.plugins import FlopCount, FlopCounterSpec, hookimpl

        def build_recomputing(options, measured):
            n = measured.parameters.matmul
            return FlopCount(8.0 * n, n, "8 N D: the forward pass is computed twice", "matmul parameters")

        @hookimpl
        def flops_fit_flop_counters():
            yield FlopCounterSpec(name="recomputing", build=build_recomputing)
    """
    return ()


@hookspec
def flops_fit_trainers() -> Iterable[TrainerSpec]:
    """Offer trainers: ``[trainer]`` in an experiment.

    ::

        from flops_fit_core.plugins import Trainer, TrainerSpec, hookimpl

        class PlainTrainer(Trainer):
            def train(self, job, context):
                import torch

                for run in job.runs:
                    parts = context.build(run)
                    task, groups = parts.dataset.task, parts.optimizer.param_groups
                    peaks = [group["lr"] for group in groups]
                    batches = parts.dataset.batches(run.batch_size)
                    for step in range(run.steps):
                        if context.should_stop():
                            return
                        for group, peak in zip(groups, peaks, strict=True):
                            group["lr"] = peak * parts.schedule(step)
                        batch = next(batches)
                        loss, count = task.loss(task.outputs(parts.model, batch), batch)
                        parts.optimizer.zero_grad()
                        (loss / count).backward()
                        parts.optimizer.step()
                    parts.model.eval()  # without dropout
                    with torch.no_grad():
                        held = [task.loss(task.outputs(parts.model, b), b)
                                for b in parts.dataset.eval_batches(4096, 64)]
                    mean = sum(float(loss) for loss, _ in held) / sum(count for _, count in held)
                    yield context.result(run, "completed", loss=mean, tokens=run.tokens)

        @hookimpl
        def flops_fit_trainers():
            yield TrainerSpec(name="plain", build=lambda options: PlainTrainer())
    """
    return ()
