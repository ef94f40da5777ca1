"""Finds the form of a user's loss function by evaluating it on a few samples.

A form is accepted only if the loss of a batch follows from the losses of its parts. Results therefore do not
depend on micro-batches, devices or evaluation batches.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flops_fit_core.api.loss_form.output_parts import double, map_tensors, roll, select_positions, select_samples
from flops_fit_core.api.loss_form.trials import LossTrials, close
from flops_fit_core.api.loss_form.values import check_value, is_number
from flops_fit_core.data.custom_task import IGNORED, CustomTask, LossForm, Reduction, is_classes, logits_of
from flops_fit_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.plugins.protocols import Batch

MAX_OUTPUTS = 10_000_000
"""With more logits than this, a loss is evaluated on three samples only."""
SCALAR_FORMS: tuple[Reduction, ...] = ("sum", "mean", "mean-of-all", "mean-of-sample-sums", "batch")


def find_form(task: CustomTask, model: nn.Module, batch: Batch, reduction: Reduction | None = None) -> LossForm:
    """The form of a loss function, from its values on a batch, on parts of it, and with masked targets.

    Args:
        task: The task, with a loss function.
        model: A model on the CPU, in evaluation mode.
        batch: A few samples, at least two.
        reduction: The form that the user states; None to find it.

    Raises DataError, naming the choices, if no form explains the values or if they contradict ``reduction``.
    """
    import torch

    from flops_fit_core.training.rng import fixed_randomness

    with torch.no_grad():
        outputs = task.outputs(model, batch)
    targets = task.targets_of(batch)
    if getattr(logits_of(outputs), "numel", int)() > MAX_OUTPUTS and len(targets) > 3:
        outputs, targets = select_samples(outputs, len(targets), slice(0, 3)), targets[:3]
    assert task.loss_fn is not None
    loss_fn = task.loss_fn

    def value(outputs: Any, targets: Tensor) -> Any:
        with fixed_randomness(), torch.no_grad():
            return loss_fn(map_tensors(outputs, lambda tensor: tensor.clone()), targets.clone())

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch would broadcast, with a wrong loss
            first = value(outputs, targets)
    except Exception as error:
        raise DataError(_describe_mismatch(loss_fn, outputs, targets, error)) from error
    if is_classes(targets):
        outputs = _add_noise(outputs, targets, value, first)
    check_value(first, loss_fn, outputs, targets)
    probe = _Probe(value, outputs, targets, loss_fn)
    if reduction is not None:
        return probe.stated(reduction)
    try:
        return probe.form()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"loss_fn works on a batch but fails on a part of it ({type(error).__name__}: {error}), so its form "
            "cannot be found: return outputs with samples first, or pass loss_reduction='mean', 'sum', "
            "'sample-mean', 'sample-sum' or 'batch'"
        ) from error


def _add_noise(outputs: Any, targets: Tensor, value: Callable[[Any, Tensor], Any], first: Any) -> Any:
    """The outputs with noise, so that no two targets have the same loss; unchanged if the loss rejects them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noisy = map_tensors(
        outputs,
        lambda tensor: (
            tensor + 2 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
        ),
    )
    try:
        losses = value(noisy, targets)
        is_finite = all(
            math.isfinite(float(part.sum())) for part in (losses if isinstance(losses, tuple) else [losses])
        )
    except Exception:
        return outputs
    return noisy if is_finite and type(losses) is type(first) else outputs


def _describe_mismatch(loss_fn: object, outputs: Any, targets: Tensor, error: Exception) -> str:
    shape = tuple(getattr(logits_of(outputs), "shape", ()))
    text = (
        f"loss_fn cannot be applied to outputs of shape {shape or type(outputs).__name__} and targets of shape "
        f"{tuple(targets.shape)}: {type(error).__name__}: {error}"
    )
    if len(shape) == 3 and shape[:2] == tuple(targets.shape) and not isinstance(error, TypeError):
        text += (
            ". torch's cross-entropy expects classes in dimension 1: leave loss_fn out (the default expects "
            "batch, positions, classes), or flatten: cross_entropy(outputs.flatten(0, 1), targets.flatten())"
        )
    return text


class _Probe(LossTrials):
    """Finds or checks the form of one loss function on one batch."""

    def form(self) -> LossForm:
        """The form that explains the values of the loss function."""
        self._check_layout()
        value = self.value(self.outputs, self.original)
        if isinstance(value, tuple):
            return self._pair(value)
        shifted = self._ignores_first_column()
        if value.ndim == 0:
            return self._scalar(shifted)
        samples = len(self.targets)
        if self.classes and self.targets.ndim > 1:
            values = self.targets.numel() - (samples if shifted else 0)
            if value.numel() == values and values > samples:
                return self._check_parts(
                    LossForm("values", self._ignored_classes(self._total, "sum", shifted), shifted)
                )
        if value.numel() == samples:
            return self._check_parts(self._sample_form(shifted))
        raise DataError(
            f"loss_fn returned values of shape {tuple(value.shape)} for targets of shape "
            f"{tuple(self.targets.shape)}: it must return one value per target or sample, a scalar, or "
            f"(sum, count)"
        )

    def _check_layout(self) -> None:
        """Raises DataError if the loss confuses positions with classes, which is possible if both have one
        size."""
        logits, targets = logits_of(self.outputs), self.targets
        shape = tuple(getattr(logits, "shape", ()))
        if not self.classes or len(shape) != 3 or shape[1] != shape[2] or shape[:2] != tuple(targets.shape):
            return
        before = float(self._total(self.outputs, targets))
        rolled = [float(self._total(roll(self.outputs, dim), targets.roll(1, 1))) for dim in (1, 2)]
        if not close(before, rolled[0]) and close(before, rolled[1]):
            raise DataError(
                f"loss_fn uses dimension 1 of outputs of shape {shape} as classes and dimension 2 as "
                "positions: leave loss_fn out, or flatten: cross_entropy(outputs.flatten(0, 1), targets.flatten())"
            )

    def stated(self, reduction: Reduction) -> LossForm:
        """The form that the user states, with the classes that it ignores."""
        value = self.value(self.outputs, self.original)
        is_scalar = getattr(value, "ndim", None) == 0
        if is_scalar != (reduction in SCALAR_FORMS):
            kind = f"a value of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
            raise DataError(f"loss_reduction={reduction!r} does not match loss_fn, which returned {kind}")
        if reduction == "batch":
            return LossForm("batch", ())
        shifted = self._ignores_first_column()
        if not is_scalar:
            ignored = self._classes_ignored_in_rows(shifted) if reduction == "sample-mean" else ()
            return LossForm(reduction, ignored or self._ignored_classes(self._total, "sum", shifted), shifted)
        self._check_doubled(reduction)
        sums: Reduction = "sum" if reduction == "mean-of-sample-sums" else reduction
        named = getattr(self.loss_fn, "ignore_index", IGNORED)
        ignored = self._ignored_classes(self.value, sums, shifted) or ((int(named),) if self.classes else ())
        return LossForm(reduction, ignored, shifted)

    def _check_doubled(self, reduction: Reduction) -> None:
        """Raises DataError if the loss of a doubled batch contradicts the stated form."""
        single = float(self.value(self.outputs, self.targets))
        try:
            doubled = float(self.value(*double(self.outputs, self.targets)))
        except Exception:  # outputs without a sample dimension first cannot be doubled
            return
        if close(single, doubled) and not close(2 * single, doubled) and reduction == "sum":
            raise DataError(
                "loss_reduction='sum', but loss_fn returned the same value for a batch and a doubled batch"
            )
        if close(2 * single, doubled) and not close(single, doubled) and reduction != "sum":
            raise DataError(
                f"loss_reduction={reduction!r}, but loss_fn returned twice the value for a doubled batch"
            )

    def _check_parts(self, form: LossForm) -> LossForm:
        """The form. Raises DataError if the values of a sample depend on other samples of the batch."""
        if self._adds_up(form):
            return form
        raise DataError(
            "loss_fn returned one value per sample or target, but the values of a sample differ in a smaller "
            f"batch{self._broadcast_hint()}: return values that depend on their sample only. For a loss of a "
            "complete batch (contrastive), return the mean and pass loss_reduction='batch'"
        )

    def _broadcast_hint(self) -> str:
        shape, targets = tuple(getattr(logits_of(self.outputs), "shape", ())), tuple(self.targets.shape)
        if self.classes or shape == targets or math.prod(shape) != math.prod(targets):
            return ""
        return (
            f" (outputs of shape {shape} and targets of shape {targets} may be broadcast: use one shape for both)"
        )

    def _random_hint(self) -> str:
        from flops_fit_core.training.rng import draws_random_numbers

        if not draws_random_numbers(lambda: self.loss_fn(self.outputs, self.targets.clone())):  # type: ignore[operator]
            return ""
        return ". It draws random numbers: draw them in the model and return them with its outputs"

    def _pair(self, value: tuple[Any, ...]) -> LossForm:
        if len(value) != 2 or not all(is_number(part) for part in value):
            parts = ", ".join(
                f"a tensor of shape {tuple(part.shape)}" if hasattr(part, "shape") else type(part).__name__
                for part in value
            )
            raise DataError(
                f"loss_fn returned a tuple of {len(value)} ({parts}): return (sum, count), the sum over valid "
                "targets and their number, or only the loss"
            )
        if not math.isfinite(float(value[0])) or float(value[1]) < 0:
            raise DataError(
                f"loss_fn returned ({float(value[0]):g}, {float(value[1]):g}): return (sum, count), a finite sum "
                "and a count of at least 0"
            )
        first, second = (self.value(*part) for part in self._parts())
        for index, name in enumerate(("sum", "count")):
            if not close(float(first[index]) + float(second[index]), float(value[index])):
                raise DataError(
                    f"loss_fn returned (sum, count), but the {name} of a batch is not the sum over its parts: "
                    "return the sum over valid targets and their number"
                )
        shifted = self._ignores_first_column()
        return LossForm("pair", self._ignored_classes(self._total, "sum", shifted), shifted)

    def _scalar(self, shifted: bool) -> LossForm:
        single = float(self.value(self.outputs, self.targets))
        doubled = float(self.value(*double(self.outputs, self.targets)))
        if not math.isfinite(single):
            raise DataError(
                f"loss_fn returned {single} on the first samples (targets: {_value_range(self.targets)})"
            )
        if close(single, doubled):
            for form in self._means(shifted):
                if self._adds_up(form):
                    return form
        elif close(2 * single, doubled):
            form = LossForm("sum", self._ignored_classes(self.value, "sum", shifted), shifted)
            if self._adds_up(form):
                return form
        hints = self._broadcast_hint() + self._random_hint()
        raise DataError(
            f"loss_fn returned {single:.4g} for a batch and {doubled:.4g} for the batch doubled, and no mean or "
            f"sum over its targets explains the losses of its parts{hints}. Return one value per sample or "
            "target, or (sum, count). If it is a mean or a sum, pass loss_reduction='mean' or 'sum'; for a loss "
            "of a complete batch (contrastive, regularised), pass loss_reduction='batch'. With class weights, "
            "return (sum of weighted losses, sum of weights)"
        )

    def _means(self, shifted: bool) -> list[LossForm]:
        """Possible forms of a mean, most likely first."""
        if self._position_reduction() == "sum":
            return [LossForm("mean-of-sample-sums", self._ignored_classes(self.value, "sum", shifted), shifted)]
        valid = LossForm("mean", self._ignored_classes(self.value, "mean", shifted), shifted)
        every = LossForm("mean-of-all", self._ignored_classes(self.value, "mean-of-all", shifted), shifted)
        return [valid, every] if valid.ignored or not every.ignored else [every]

    def _position_reduction(self) -> str:
        """``sum`` or ``mean``: how the loss of a sequence follows from its parts; empty if this is unknown."""
        if not self.classes or self.targets.ndim < 2 or self.targets.shape[1] < 4:
            return ""
        length = self.targets.shape[1]
        cut = length // 2
        try:
            first, second, joined = (
                float(self._total(select_positions(self.outputs, length, part), self.targets[:, part]))
                for part in (slice(0, cut), slice(cut, 2 * cut), slice(0, 2 * cut))
            )
        except Exception:  # a loss function may raise anything for parts of a sequence
            return ""
        return "sum" if close(first + second, joined) else "mean" if close((first + second) / 2, joined) else ""

    def _sample_form(self, shifted: bool) -> LossForm:
        """The form of one value per sample: for a sequence, a mean or a sum over its targets."""
        if not self.classes or self.targets.ndim < 2 or self.targets.shape[1] < 2:
            return LossForm("values", self._ignored_classes(self._total, "sum", shifted), shifted)
        reduction = self._position_reduction()
        if reduction == "sum":
            return LossForm("sample-sum", self._ignored_classes(self._total, "sum", shifted), shifted)
        if reduction == "mean":
            ignored = self._classes_ignored_in_rows(shifted)
            every = self._ignored_classes(self._total, "sum", shifted)
            if every and not ignored:
                return LossForm("sample-mean-of-all", every, shifted)
            return LossForm("sample-mean", ignored, shifted)
        raise DataError(
            f"loss_fn returned one value per sample ({len(self.targets)} samples), neither the mean nor the sum "
            "over its targets: return (sum, count), or pass loss_reduction='sample-mean' or "
            "'sample-sum'"
        )


def _value_range(targets: Tensor) -> str:
    return f"{float(targets.min()):g} to {float(targets.max()):g}"
