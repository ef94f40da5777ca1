"""The form of a user's loss function, found on a few samples.

A form is accepted only if it reproduces the loss of a batch from the losses of its halves, so that micro-batches,
devices and evaluation batches cannot change a result.
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

LARGEST_OUTPUTS = 10_000_000
"""Above so many logits, a loss is tried on three samples only."""
SCALARS: tuple[Reduction, ...] = ("sum", "mean", "mean-of-all", "mean-of-sample-sums", "batch")


def find_form(task: CustomTask, model: nn.Module, batch: Batch, reduction: Reduction | None = None) -> LossForm:
    """The form of a loss function, from its values on a batch, its halves, and with targets masked.

    Args:
        task: With the loss function.
        model: On the CPU, in evaluation mode.
        batch: A few samples, at least two.
        reduction: What the user states it to be; None to find it.

    Raises DataError that states the choices, for a value that no form explains or that contradicts ``reduction``.
    """
    import torch

    from flops_fit_core.training.rng import fixed_randomness

    with torch.no_grad():
        outputs = task.outputs(model, batch)
    targets = task.targets_of(batch)
    if getattr(logits_of(outputs), "numel", int)() > LARGEST_OUTPUTS and len(targets) > 3:
        outputs, targets = select_samples(outputs, len(targets), slice(0, 3)), targets[:3]
    assert task.loss_fn is not None
    loss_fn = task.loss_fn

    def value(outputs: Any, targets: Tensor) -> Any:
        with fixed_randomness(), torch.no_grad():
            return loss_fn(map_tensors(outputs, lambda tensor: tensor.clone()), targets.clone())

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch broadcasts them, to a wrong loss
            first = value(outputs, targets)
    except Exception as error:
        raise DataError(_refused(loss_fn, outputs, targets, error)) from error
    if is_classes(targets):
        outputs = _spread_out(outputs, targets, value, first)
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
            f"loss_fn fits a batch, but not a part of it ({type(error).__name__}: {error}), so its form cannot be "
            "found: give outputs with samples first, or pass loss_reduction='mean', 'sum', 'sample-mean', "
            "'sample-sum' or 'batch'"
        ) from error


def _spread_out(outputs: Any, targets: Tensor, value: Callable[[Any, Tensor], Any], first: Any) -> Any:
    """The outputs with noise, so that no two targets have the same loss; unchanged if the loss does not take
    them."""
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
        finite = all(
            math.isfinite(float(part.sum())) for part in (losses if isinstance(losses, tuple) else [losses])
        )
    except Exception:
        return outputs
    return noisy if finite and type(losses) is type(first) else outputs


def _refused(loss_fn: object, outputs: Any, targets: Tensor, error: Exception) -> str:
    shape = tuple(getattr(logits_of(outputs), "shape", ()))
    text = (
        f"loss_fn does not fit outputs of shape {shape or type(outputs).__name__} and targets of shape "
        f"{tuple(targets.shape)}: {type(error).__name__}: {error}"
    )
    if len(shape) == 3 and shape[:2] == tuple(targets.shape) and not isinstance(error, TypeError):
        text += (
            ". torch's cross-entropy takes classes in dimension 1: leave loss_fn out (the default takes batch, "
            "positions, classes), or flatten: cross_entropy(outputs.flatten(0, 1), targets.flatten())"
        )
    return text


class _Probe(LossTrials):
    """Tests of one loss function on one batch."""

    def form(self) -> LossForm:
        """The form that the values of the loss function show."""
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
                return self._of_parts(LossForm("values", self._ignored(self._total, "sum", shifted), shifted))
        if value.numel() == samples:
            return self._of_parts(self._sample_form(shifted))
        raise DataError(
            f"loss_fn returned values of shape {tuple(value.shape)} for targets of shape "
            f"{tuple(self.targets.shape)}: it must return one value for each target or sample, a scalar, or "
            f"(sum, count)"
        )

    def _check_layout(self) -> None:
        """Raises DataError if positions and classes, of equal number, are taken for each other."""
        logits, targets = logits_of(self.outputs), self.targets
        shape = tuple(getattr(logits, "shape", ()))
        if not self.classes or len(shape) != 3 or shape[1] != shape[2] or shape[:2] != tuple(targets.shape):
            return
        before = float(self._total(self.outputs, targets))
        rolled = [float(self._total(roll(self.outputs, dim), targets.roll(1, 1))) for dim in (1, 2)]
        if not close(before, rolled[0]) and close(before, rolled[1]):
            raise DataError(
                f"loss_fn takes dimension 1 of outputs of shape {shape} for classes, and dimension 2 for "
                "positions: leave loss_fn out, or flatten: cross_entropy(outputs.flatten(0, 1), targets.flatten())"
            )

    def stated(self, reduction: Reduction) -> LossForm:
        """The form that the user states, with the targets that it ignores."""
        value = self.value(self.outputs, self.original)
        is_scalar = getattr(value, "ndim", None) == 0
        if is_scalar != (reduction in SCALARS):
            shape = f"of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
            raise DataError(f"loss_reduction={reduction!r} does not fit a loss_fn that returned a value {shape}")
        if reduction == "batch":
            return LossForm("batch", ())
        shifted = self._ignores_first_column()
        if not is_scalar:
            ignored = self._ignored_in_rows(shifted) if reduction == "sample-mean" else ()
            return LossForm(reduction, ignored or self._ignored(self._total, "sum", shifted), shifted)
        self._check_doubled(reduction)
        sums: Reduction = "sum" if reduction == "mean-of-sample-sums" else reduction
        named = getattr(self.loss_fn, "ignore_index", IGNORED)
        ignored = self._ignored(self.value, sums, shifted) or ((int(named),) if self.classes else ())
        return LossForm(reduction, ignored, shifted)

    def _check_doubled(self, reduction: Reduction) -> None:
        """Raises DataError for a stated form that the loss of a batch twice contradicts."""
        once = float(self.value(self.outputs, self.targets))
        try:
            twice = float(self.value(*double(self.outputs, self.targets)))
        except Exception:  # outputs whose first dimension is not the samples' cannot be doubled here
            return
        if close(once, twice) and not close(2 * once, twice) and reduction == "sum":
            raise DataError("loss_reduction='sum', but loss_fn returned the same for a batch and the batch twice")
        if close(2 * once, twice) and not close(once, twice) and reduction != "sum":
            raise DataError(f"loss_reduction={reduction!r}, but loss_fn returned twice as much for a batch twice")

    def _of_parts(self, form: LossForm) -> LossForm:
        """The form. Raises DataError if the values of a sample depend on the other samples of the batch."""
        if self._adds_up(form):
            return form
        raise DataError(
            "loss_fn returned one value for each sample or target, but the values of a sample are others in a "
            f"smaller batch{self._broadcast_hint()}: return values that depend on their own sample only, or the "
            "mean of them with loss_reduction='batch' for a loss that holds for a whole batch only (contrastive)"
        )

    def _broadcast_hint(self) -> str:
        shape, targets = tuple(getattr(logits_of(self.outputs), "shape", ())), tuple(self.targets.shape)
        if self.classes or shape == targets or math.prod(shape) != math.prod(targets):
            return ""
        return f" (outputs of shape {shape} and targets of shape {targets} may be broadcast: give both one shape)"

    def _random_hint(self) -> str:
        from flops_fit_core.training.rng import draws_random_numbers

        if not draws_random_numbers(lambda: self.loss_fn(self.outputs, self.targets.clone())):  # type: ignore[operator]
            return ""
        return ". It draws random numbers: draw them in the model, which returns them with its outputs"

    def _pair(self, value: tuple[Any, ...]) -> LossForm:
        if len(value) != 2 or not all(is_number(part) for part in value):
            shown = ", ".join(
                f"a tensor of shape {tuple(part.shape)}" if hasattr(part, "shape") else type(part).__name__
                for part in value
            )
            raise DataError(
                f"loss_fn returned a tuple of {len(value)} ({shown}): return (sum, count), the sum over valid "
                "targets and their number, or the loss alone"
            )
        if not math.isfinite(float(value[0])) or float(value[1]) < 0:
            raise DataError(
                f"loss_fn returned ({float(value[0]):g}, {float(value[1]):g}): return (sum, count), a finite sum "
                "and a count of at least 0"
            )
        first, second = (self.value(*half) for half in self._halves())
        for index, name in enumerate(("sum", "count")):
            if not close(float(first[index]) + float(second[index]), float(value[index])):
                raise DataError(
                    f"loss_fn returned (sum, count), but the {name} of a batch is not that of its halves "
                    "together: return the sum over valid targets and their number"
                )
        shifted = self._ignores_first_column()
        return LossForm("pair", self._ignored(self._total, "sum", shifted), shifted)

    def _scalar(self, shifted: bool) -> LossForm:
        once = float(self.value(self.outputs, self.targets))
        twice = float(self.value(*double(self.outputs, self.targets)))
        if not math.isfinite(once):
            raise DataError(f"loss_fn returned {once} on the first samples, of targets {_range(self.targets)}")
        if close(once, twice):
            for form in self._means(shifted):
                if self._adds_up(form):
                    return form
        elif close(2 * once, twice):
            form = LossForm("sum", self._ignored(self.value, "sum", shifted), shifted)
            if self._adds_up(form):
                return form
        hints = self._broadcast_hint() + self._random_hint()
        raise DataError(
            f"loss_fn returned {once:.4g} for a batch and {twice:.4g} for the same batch twice, and no mean or "
            f"sum over its targets explains the losses of its parts{hints}. Return one value for each sample or "
            "target, or (sum, count); or pass loss_reduction='mean' or 'sum' if it is one all the same, or "
            "loss_reduction='batch' for a loss that holds for a whole batch only (contrastive, regularised). A "
            "loss that weights classes returns (sum of weighted losses, sum of weights)"
        )

    def _means(self, shifted: bool) -> list[LossForm]:
        """Possible forms of a mean, the likeliest first."""
        if self._over_positions() == "sum":
            return [LossForm("mean-of-sample-sums", self._ignored(self.value, "sum", shifted), shifted)]
        valid = LossForm("mean", self._ignored(self.value, "mean", shifted), shifted)
        every = LossForm("mean-of-all", self._ignored(self.value, "mean-of-all", shifted), shifted)
        return [valid, every] if valid.ignored or not every.ignored else [every]

    def _over_positions(self) -> str:
        """Whether the loss of a sequence is the ``sum`` or the ``mean`` of its parts; empty if that is unknown."""
        if not self.classes or self.targets.ndim < 2 or self.targets.shape[1] < 4:
            return ""
        length = self.targets.shape[1]
        cut = length // 2
        try:
            first, second, both = (
                float(self._total(select_positions(self.outputs, length, part), self.targets[:, part]))
                for part in (slice(0, cut), slice(cut, 2 * cut), slice(0, 2 * cut))
            )
        except Exception:  # a loss function may raise anything for parts of a sequence
            return ""
        return "sum" if close(first + second, both) else "mean" if close((first + second) / 2, both) else ""

    def _sample_form(self, shifted: bool) -> LossForm:
        """One value for each sample: of a sequence, a mean or a sum over its targets."""
        if not self.classes or self.targets.ndim < 2 or self.targets.shape[1] < 2:
            return LossForm("values", self._ignored(self._total, "sum", shifted), shifted)
        over = self._over_positions()
        if over == "sum":
            return LossForm("sample-sum", self._ignored(self._total, "sum", shifted), shifted)
        if over == "mean":
            ignored = self._ignored_in_rows(shifted)
            every = self._ignored(self._total, "sum", shifted)
            if every and not ignored:
                return LossForm("sample-mean-of-all", every, shifted)
            return LossForm("sample-mean", ignored, shifted)
        raise DataError(
            f"loss_fn returned one value for each of {len(self.targets)} samples, which is neither the mean nor "
            "the sum over a sample's targets: return (sum, count), or pass loss_reduction='sample-mean' or "
            "'sample-sum'"
        )


def _range(targets: Tensor) -> str:
    return f"{float(targets.min()):g} to {float(targets.max()):g}"
