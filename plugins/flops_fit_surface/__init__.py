"""A synthetic loss surface: runs have losses from a formula, without training.

Use it to try a plan, a fitter or a report with a known truth. Every result is marked as synthetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from flops_fit_core.plugins import DatasetSpec, ModelSpec, Options, Trainer, TrainerSpec, hookimpl
from flops_fit_surface.dataset import Surface, SurfaceOptions
from flops_fit_surface.model import FlatOptions, build_flat
from flops_fit_surface.trainer import SurfaceTrainer


@hookimpl
def flops_fit_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="surface",
        options=FlatOptions,
        build=build_flat,
        size="params",
        flops_per_token=lambda options, task: 6.0 * options.params,
    )


@hookimpl
def flops_fit_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(
        name="surface",
        options=SurfaceOptions,
        build=lambda options, seed: Surface(options),
        trainer="surface/surface",
    )


def build_trainer(options: Options) -> Trainer:
    """Build the trainer, which computes losses from the dataset's formula and marks results as synthetic."""
    return SurfaceTrainer()


@hookimpl
def flops_fit_trainers() -> Iterator[TrainerSpec]:
    yield TrainerSpec(name="surface", build=build_trainer)
