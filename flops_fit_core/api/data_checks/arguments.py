"""Checks of the data and loss arguments of ``find_optimal``, before any data are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flops_fit_core.api.data_checks.overlap import SAME_DATA, unwrap_subset
from flops_fit_core.errors import ConfigError, DataError


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check the values of arguments. Raises ConfigError, naming the argument, for an invalid value."""
    share, tokens = arguments["eval_share"], arguments["tokens_per_sample"]
    if arguments["eval_dataset"] is None and not 0 < share < 1:
        raise ConfigError(
            f"eval_share={share!r}: it must be between 0 and 1 (or pass eval_dataset=another_dataset)"
        )
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise ConfigError(f"tokens_per_sample={tokens!r}: it must be an integer of at least 1, or left out")
    unit = arguments["unit"]
    if unit is not None and not (isinstance(unit, str) and unit.strip() and unit.isprintable()):
        raise ConfigError(f'unit={unit!r}: it must name the unit of D, such as "tokens" or "images"')
    if arguments["loss_fn"] is not None:
        _check_loss(arguments["loss_fn"])


def _check_loss(loss_fn: Any) -> None:
    if isinstance(loss_fn, type):
        raise ConfigError(f"loss_fn={loss_fn.__name__} is a class: pass an instance, {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise ConfigError(
            f"loss_fn={loss_fn!r} is not callable: pass a function loss_fn(outputs, targets), or omit it for "
            "cross-entropy (class numbers) or squared error (real targets)"
        )
    parameters = getattr(loss_fn, "named_parameters", None)
    trainable = [name for name, item in parameters() if item.requires_grad] if parameters is not None else []
    if trainable:
        raise ConfigError(
            f"loss_fn has trainable parameters ({', '.join(trainable[:3])}), which no optimizer would train: move "
            "them into the model, or freeze them with loss_fn.requires_grad_(False)"
        )


def check_eval_disjoint(training: Any, eval_dataset: Any) -> None:
    """Raises DataError if held-out data are the training data, or a Subset that shares samples with them."""
    (training_base, training_indices), (eval_base, eval_indices) = (
        unwrap_subset(training),
        unwrap_subset(eval_dataset),
    )
    if training_base is not eval_base:
        return
    if training_indices is None and eval_indices is None:
        if not _draws_samples(training_base):
            raise DataError(SAME_DATA)
        return
    every = range(len(training_base))
    eval_set = set(every if eval_indices is None else eval_indices)
    shared = eval_set.intersection(every if training_indices is None else training_indices)
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(eval_set)} samples of eval_dataset are also training samples (both are "
            "parts of one dataset): pass parts without common samples, for example from "
            "torch.utils.data.random_split"
        )


def _draws_samples(source: Any) -> bool:
    """Whether a dataset draws its samples at random: then held-out samples differ from training samples."""
    from flops_fit_core.api.sources import has_length
    from flops_fit_core.training.rng import draws_random_numbers

    return has_length(source) and draws_random_numbers(lambda: source[0])
