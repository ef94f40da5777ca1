"""Dataset options that depend on a model, determined with a small model of the study before planning."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Experiment, build_dataset
from flops_fit_core.errors import PlanError, UserError, raised_at
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.model_stats import MAX_REAL_PARAMS, build_on_meta
from flops_fit_core.planning.model_errors import describe_model_error
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import CompletedDataset, Dataset, Task

if TYPE_CHECKING:
    from torch import nn

MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Multiples of the family's step that are tried to find a small model that can be built."""
LARGEST_BUILT = 10 * MAX_REAL_PARAMS
"""Models with more parameters are not built for a trial."""


def complete_dataset(experiment: Experiment, dataset: Dataset) -> tuple[Experiment, Dataset]:
    """The experiment and its dataset, with the dataset options that a model determines.

    With automatic sizes, the first small size that can be built and accepts the data is used. If no size does,
    the options stay unset, and the search for sizes reports the model's error.

    Raises PlanError if the smallest size that the user lists cannot be built or does not accept the data, and
    DataError from the dataset.
    """
    if not isinstance(dataset, CompletedDataset):
        return experiment, dataset
    too_large = False
    for options, is_listed in _candidates(experiment):
        try:
            model = _small_model(experiment, options, dataset.task)
            if model is not None:
                return _with_options(experiment, _completed(experiment, dataset, model))
            too_large = True
        except PlanError:
            if is_listed:
                raise
    return _with_options(experiment, dict(dataset.complete(None))) if too_large else (experiment, dataset)


def _with_options(experiment: Experiment, options: Mapping[str, Any]) -> tuple[Experiment, Dataset]:
    config = experiment.dataset.with_options(**options)
    completed = build_dataset(config, experiment.sweep.seeds[0])
    if completed.task.whole_batches and getattr(experiment.trainer.options, "micro_batch", None) is not None:
        raise PlanError("loss_reduction='batch' needs undivided batches: remove trainer.micro_batch")
    return experiment.model_copy(update={"dataset": config}), completed


def _completed(experiment: Experiment, dataset: CompletedDataset, model: nn.Module) -> dict[str, Any]:
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            return dict(dataset.complete(model.eval()))
        except UserError:
            raise
        except Exception as error:
            raise PlanError(
                f"model {experiment.model.name!r} does not fit the data on a few of its samples: "
                f"{type(error).__name__}: {error}{_place(error)}"
            ) from error


def _small_model(experiment: Experiment, options: Options, task: Task) -> nn.Module | None:
    """The model with values, on the CPU. None if it is too large for a trial.

    Raises PlanError if it cannot be built.
    """
    import torch

    try:
        shapes = build_on_meta(experiment.model, options, task)
        if sum(param.numel() for param in shapes.parameters()) > LARGEST_BUILT:
            return None
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model: nn.Module = build_model(experiment.model, options, task)
        return model
    except Exception as error:
        size = getattr(options, experiment.model.spec.size)
        raise PlanError(
            f"model {experiment.model.name!r} cannot be built with {experiment.model.spec.size} = {size}: "
            f"{describe_model_error(error)}"
        ) from error


def _candidates(experiment: Experiment) -> Iterator[tuple[Options, bool]]:
    """Options of the smallest listed size, then of small multiples of the step; and whether they are listed."""
    model, sizes = experiment.model, experiment.sweep.sizes
    if isinstance(sizes, tuple):
        listed = [model.with_options(**changes).options for changes in sizes]
        yield min(listed, key=lambda options: _number(getattr(options, model.spec.size))), True
    step = experiment.sweep.multiple_of or model.spec.multiple_of
    for multiple in MULTIPLES:
        yield model.with_options(**{model.spec.size: multiple * step}).options, False


def _number(size: Any) -> float:
    return float(size) if isinstance(size, int | float) else 0.0


def _place(error: BaseException) -> str:
    """File and line of the user's code that raised, in parentheses; empty if no such line exists."""
    place = raised_at("".join(traceback.format_exception(error)))
    return f" ({place})" if place else ""
