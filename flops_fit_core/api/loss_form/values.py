"""Checks of a loss function's value, and the classes that it ignores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flops_fit_core.api.loss_form.output_parts import map_tensors
from flops_fit_core.data.custom_task import logits_of
from flops_fit_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SEARCH = 5e7
"""Maximum number of logits, over all trials, that are computed to find classes that a loss ignores."""


def class_count(outputs: Any, targets: Tensor) -> int | None:
    """The number of classes of the outputs; None if their shape does not show it."""
    shape: tuple[int, ...] = tuple(getattr(logits_of(outputs), "shape", ()))
    rows = tuple(targets.shape)
    if len(shape) == len(rows) + 1 and shape[2:] == rows[1:] and shape[0] == rows[0] and shape[:-1] != rows:
        return shape[1]
    return shape[-1] if len(shape) > 1 and math.prod(shape[:-1]) == math.prod(rows) else None


def check_value(value: Any, loss_fn: Any, outputs: Any, targets: Tensor) -> None:
    """Raises DataError for a value that is not a tensor, has low precision, or has no gradient."""
    import torch

    if isinstance(value, tuple):
        value = value[0] if value else None
        if not isinstance(value, torch.Tensor):
            return
    if not isinstance(value, torch.Tensor):
        text = f"loss_fn returned a {type(value).__name__}: it must return a tensor, or (sum, count)"
        if value is None:
            text += ". Models compute no loss without targets: compute it from the logits, or leave loss_fn out"
        raise DataError(text)
    if value.dtype in (torch.bfloat16, torch.float16):
        raise DataError(
            f"loss_fn returned a {str(value.dtype).removeprefix('torch.')} value, with two or three correct "
            "digits: compute it from outputs.float()"
        )
    if has_gradient(loss_fn, outputs, targets) is False:
        raise DataError(
            "loss_fn returned a value without a gradient, so nothing would be trained: do not use .detach(), "
            ".item(), argmax or conversions to numpy or integers"
        )


def has_gradient(loss_fn: Any, outputs: Any, targets: Tensor) -> bool | None:
    """Whether the loss is a differentiable function of the outputs. None if this is unknown."""
    value, _, is_tracked = _differentiable(loss_fn, outputs, targets)
    return None if value is None or not is_tracked else bool(value.requires_grad)


def _differentiable(loss_fn: Any, outputs: Any, targets: Tensor) -> tuple[Any, Any, bool]:
    """The loss of outputs that track gradients, these outputs, and whether any of them is floating-point.

    The loss is None if the loss function raised.
    """
    import torch

    from flops_fit_core.training.rng import fixed_randomness

    is_tracked = False

    def tracked(tensor: Tensor) -> Tensor:
        nonlocal is_tracked
        if not tensor.is_floating_point():
            return tensor
        is_tracked = True
        return tensor.detach().clone().requires_grad_() * 1  # a leaf could not be changed in place

    with fixed_randomness(), torch.enable_grad():
        tracked_outputs = map_tensors(outputs, tracked)
        try:
            value = loss_fn(tracked_outputs, targets.clone())
        except Exception:  # it works without gradients; if not in training, training reports it
            return None, tracked_outputs, is_tracked
    return (value[0] if isinstance(value, tuple) else value), tracked_outputs, is_tracked


def classes_without_gradient(loss_fn: Any, outputs: Any, targets: Tensor, *, shifted: bool) -> list[int]:
    """Classes that the loss may ignore: as targets, they have no gradient at the target's logits. At most 16.

    Args:
        loss_fn: The user's loss function.
        outputs: Outputs of a model.
        targets: Class numbers without ignored targets.
        shifted: Whether target t + 1 belongs to the logits at t.
    """
    import torch

    count, logits = class_count(outputs, targets), logits_of(outputs)
    if count is None:
        return []
    number = targets.numel()
    trials = int(min(-(-count // number), max(1, MAX_SEARCH // logits.numel())))
    present = torch.unique(targets)
    classes = torch.cat([present[(present >= 0) & (present < count)], torch.arange(count)])
    ignored: list[int] = []
    for start in range(0, min(len(classes), trials * number + len(present)), number):
        chunk = classes[start : start + number]
        trial = targets.flatten().clone()
        trial[: len(chunk)] = chunk.to(trial.dtype)
        trial = trial.reshape(targets.shape)
        value, tracked_outputs, _ = _differentiable(loss_fn, outputs, trial)
        logits_tracked = logits_of(tracked_outputs)
        if value is None or not value.requires_grad:
            return []
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value.sum(), logits_tracked, allow_unused=True)
        if gradient is None:
            return []
        is_last = gradient.shape[-1] == count and gradient.numel() == number * count
        absent = (gradient.abs().sum(-1 if is_last else 1) == 0).reshape(targets.shape)
        if shifted:
            trial, absent = trial[:, 1:], absent[:, :-1]
        ignored += trial[absent].tolist() if not bool(absent.all()) else []
    return list(dict.fromkeys(ignored))[:16]


def is_number(part: Any) -> bool:
    import torch

    return isinstance(part, int | float) or (isinstance(part, torch.Tensor) and part.numel() == 1)
