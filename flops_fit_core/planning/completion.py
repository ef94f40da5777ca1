"""Options of a dataset that depend on a model: found with a small model of the study before anything is
planned."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import Experiment, build_dataset
from flops_fit_core.errors import PlanError, UserError, raised_at
from flops_fit_core.flops.build_model import build_model
from flops_fit_core.flops.model_stats import MAX_REAL_PARAMS, build_on_meta
from flops_fit_core.planning.own_errors import own_error
from flops_fit_core.plugins.options import Options
from flops_fit_core.plugins.protocols import CompletedDataset, Dataset, Task

if TYPE_CHECKING:
    from torch import nn

MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes that are tried, in steps of the family, to find a small model that can be built."""
LARGEST_BUILT = 10 * MAX_REAL_PARAMS
"""Models above this many parameters are not built to be tried."""


def complete_dataset(experiment: Experiment, dataset: Dataset) -> tuple[Experiment, Dataset]:
    """The experiment and its dataset, with the options that the dataset finds with a model.

    Of an automatic ladder, the first small size that can be built and takes the data is used; if there is none,
    nothing is completed, and the search for sizes names the model's error.

    Raises PlanError for a size that the user lists and that cannot be built or does not take the data, and
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
    chosen = experiment.dataset.with_options(**options)
    completed = build_dataset(chosen, experiment.sweep.seeds[0])
    if completed.task.whole_batches and getattr(experiment.trainer.options, "micro_batch", None) is not None:
        raise PlanError("loss_reduction='batch' is a loss of whole batches: leave out trainer.micro_batch")
    return experiment.model_copy(update={"dataset": chosen}), completed


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
    """The model with values, on the CPU. None if it is too large to be built only to be tried.

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
            f"{own_error(error)}"
        ) from error


def _candidates(experiment: Experiment) -> Iterator[tuple[Options, bool]]:
    """The smallest size that is listed, then small multiples of the family's step; and whether it is listed."""
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
    """File and line of the user's own code that raised, for people; empty if there is none."""
    place = raised_at("".join(traceback.format_exception(error)))
    return f" ({place})" if place else ""
