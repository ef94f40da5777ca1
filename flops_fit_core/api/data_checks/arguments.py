"""Checks of what ``find_optimal`` is given as data and loss, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flops_fit_core.api.data_checks.overlap import SAME, places
from flops_fit_core.errors import ConfigError, DataError


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a loss function, a held-out share or a size of samples that cannot be used."""
    share, tokens = given["heldout_share"], given["tokens_per_sample"]
    if given["heldout"] is None and not 0 < share < 1:
        raise ConfigError(f"heldout_share={share!r}: it must lie between 0 and 1, or pass heldout=another_dataset")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise ConfigError(f"tokens_per_sample={tokens!r}: it must be a whole number of at least 1, or left out")
    unit = given["unit"]
    if unit is not None and not (isinstance(unit, str) and unit.strip() and unit.isprintable()):
        raise ConfigError(f'unit={unit!r}: it is the name of what D counts, such as "tokens" or "images"')
    if given["loss_fn"] is not None:
        _check_loss(given["loss_fn"])


def _check_loss(loss_fn: Any) -> None:
    if isinstance(loss_fn, type):
        raise ConfigError(f"loss_fn={loss_fn.__name__} is a class: pass an object of it, {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise ConfigError(
            f"loss_fn={loss_fn!r} is no function: pass loss_fn(outputs, targets), or leave it out for "
            "cross-entropy of class numbers and squared error of real targets"
        )
    parameters = getattr(loss_fn, "named_parameters", None)
    trainable = [name for name, item in parameters() if item.requires_grad] if parameters is not None else []
    if trainable:
        raise ConfigError(
            f"loss_fn has parameters of its class ({', '.join(trainable[:3])}), which no optimizer would train: "
            "make them part of the model, or freeze them with loss_fn.requires_grad_(False)"
        )


def check_heldout_is_apart(training: Any, heldout: Any) -> None:
    """Raises DataError for held-out data that are the training data, or a Subset that shares items with them."""
    (data, some), (held, others) = places(training), places(heldout)
    if data is not held:
        return
    if some is None and others is None:
        if not _draws(data):
            raise DataError(SAME)
        return
    length = len(data)
    chosen = set(range(length) if others is None else others)
    shared = chosen.intersection(range(length) if some is None else some)
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(chosen)} samples of heldout are trained on too (both are parts of one "
            "dataset): give parts that share none, as torch.utils.data.random_split does"
        )


def _draws(source: Any) -> bool:
    """Whether the first item is drawn at random, so that held-out samples are others."""
    from flops_fit_core.api.sources import has_length
    from flops_fit_core.training.rng import draws_random_numbers

    return has_length(source) and draws_random_numbers(lambda: source[0])
