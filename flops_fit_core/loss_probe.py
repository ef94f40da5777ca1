"""The form of a user's loss function, found on a few samples.

A form is accepted only if it reproduces the loss of a batch from the losses of its halves, so that micro-batches,
devices and evaluation batches cannot change a result.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flops_fit_core.causality import other_values
from flops_fit_core.custom_task import IGNORED, CustomTask, LossForm, Reduction, is_classes, logits_of
from flops_fit_core.errors import DataError
from flops_fit_core.output_parts import double, map_tensors, roll, select_positions, select_samples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.contracts import Batch

TOLERANCE = 1e-4
"""Relative difference of two losses that are taken for equal; losses are computed in float32."""
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

    from flops_fit_core.training.randomness import fixed_randomness

    with torch.no_grad():
        outputs = task.outputs(model, batch)
    targets = task.targets_of(batch)
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
    probe = _Probe(value, outputs, targets, loss_fn)
    return probe.form() if reduction is None else probe.stated(reduction)


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
    if len(shape) == 3 and shape[:2] == tuple(targets.shape):
        text += (
            ". torch's cross-entropy takes classes in dimension 1: leave loss_fn out (the default takes batch, "
            "positions, classes), or flatten: cross_entropy(outputs.flatten(0, 1), targets.flatten())"
        )
    return text


class _Probe:
    """Tests of one loss function on one batch."""

    def __init__(self, value: Callable[[Any, Any], Any], outputs: Any, targets: Tensor, loss_fn: object) -> None:
        self.value = value
        self.outputs = outputs
        self.loss_fn = loss_fn
        self.classes = is_classes(targets)
        self.targets = self._ordinary(targets) if self.classes else targets
        """Without ignored ones."""
        self.original = targets

    def form(self) -> LossForm:
        """The form that the values of the loss function show."""
        self._check_layout()
        value = self.value(self.outputs, self.original)
        if isinstance(value, tuple):
            return self._pair(value)
        shape = getattr(value, "shape", None)
        if shape is None:
            raise DataError(f"loss_fn returned a {type(value).__name__}: it must return a tensor, or (sum, count)")
        shifted = self._ignores_first_column()
        if value.ndim == 0:
            return self._scalar(shifted)
        samples = len(self.targets)
        if self.classes and self.targets.ndim > 1:
            values = self.targets.numel() - (samples if shifted else 0)
            if value.numel() == values and values > samples:
                return LossForm("values", self._ignored(self._total, "sum", shifted), shifted)
        if value.numel() == samples:
            return self._sample_form(shifted)
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
        if not _close(before, rolled[0]) and _close(before, rolled[1]):
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
        once = float(self.value(self.outputs, self.targets))
        twice = float(self.value(*double(self.outputs, self.targets)))
        if _close(once, twice) and not _close(2 * once, twice) and reduction == "sum":
            raise DataError("loss_reduction='sum', but loss_fn returned the same for a batch and the batch twice")
        if _close(2 * once, twice) and not _close(once, twice) and reduction != "sum":
            raise DataError(f"loss_reduction={reduction!r}, but loss_fn returned twice as much for a batch twice")
        sums: Reduction = "sum" if reduction == "mean-of-sample-sums" else reduction
        named = getattr(self.loss_fn, "ignore_index", IGNORED)
        ignored = self._ignored(self.value, sums, shifted) or ((int(named),) if self.classes else ())
        return LossForm(reduction, ignored, shifted)

    def _pair(self, value: tuple[Any, ...]) -> LossForm:
        if len(value) != 2 or not math.isfinite(float(value[0])) or float(value[1]) < 0:
            raise DataError(f"loss_fn returned a tuple of {len(value)}: return (sum, count), the count at least 0")
        first, second = (self.value(*half) for half in self._halves())
        for index, name in enumerate(("sum", "count")):
            if not _close(float(first[index]) + float(second[index]), float(value[index])):
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
        if _close(once, twice):
            for form in self._means(shifted):
                if self._adds_up(form):
                    return form
        elif _close(2 * once, twice):
            form = LossForm("sum", self._ignored(self.value, "sum", shifted), shifted)
            if self._adds_up(form):
                return form
        raise DataError(
            f"loss_fn returned {once:.4g} for a batch and {twice:.4g} for the same batch twice, and no mean or "
            "sum over its targets explains the losses of its halves. Return one value for each sample or target, "
            "or (sum, count); or pass loss_reduction='mean' or 'sum' if it is one all the same, or "
            f"loss_reduction='batch' for a loss that holds for a whole batch only (contrastive, regularised)"
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
        return "sum" if _close(first + second, both) else "mean" if _close((first + second) / 2, both) else ""

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

    # ------------------------------------------------------------------ ignored targets

    def _ignored(self, value: Callable[[Any, Any], Any], reduction: Reduction, shifted: bool) -> tuple[int, ...]:
        """Class numbers that the loss leaves out: with them in place of one half of the targets, then of the
        other, the two sums are that of all targets."""

        def total(targets: Tensor, ignored: int) -> float:
            rows = targets.reshape(len(targets), -1)[:, int(shifted) :]
            count = {"mean": int((rows != ignored).sum()), "mean-of-all": rows.numel(), "sum": 1}[reduction]
            return float(value(self.outputs, targets)) * count

        return self._left_out(total)

    def _ignored_in_rows(self, shifted: bool) -> tuple[int, ...]:
        """The same for a mean of each sample."""

        def total(targets: Tensor, ignored: int) -> float:
            rows = targets.reshape(len(targets), -1)[:, int(shifted) :]
            return float((self.value(self.outputs, targets).flatten() * (rows != ignored).sum(1)).sum())

        return self._left_out(total)

    def _left_out(self, total: Callable[[Tensor, int], float]) -> tuple[int, ...]:
        if not self.classes:
            return ()
        ignored: list[int] = []
        targets, mask = self.targets, self._mask()
        candidates = self._candidates()
        while candidates:
            value = next((value for value in candidates if self._is_left_out(value, total, targets, mask)), None)
            if value is None:
                break
            ignored.append(value)
            candidates.remove(value)
            ordinary = targets[~_is_among(targets, ignored)]
            if not len(ordinary):
                break
            targets = targets.masked_fill(targets == value, int(ordinary[0]))
        return tuple(ignored)

    def _is_left_out(
        self, value: int, total: Callable[[Tensor, int], float], targets: Tensor, mask: Tensor
    ) -> bool:
        try:
            parts = [total(targets.masked_fill(part, value), value) for part in (mask, ~mask)]
            whole = total(targets, value)
        except Exception:  # a loss function may raise anything for a class it does not have
            return False
        return math.isfinite(whole) and _close(math.fsum(parts), whole)

    def _candidates(self) -> list[int]:
        import torch

        values, counts = torch.unique(self.original, return_counts=True)
        named = getattr(self.loss_fn, "ignore_index", None)
        first = [int(named)] if isinstance(named, int) else []
        frequent = int(values[counts.argmax()])
        return list(dict.fromkeys([*first, IGNORED, -1, 0, frequent, int(values.min()), int(values.max())]))

    def _mask(self) -> Tensor:
        """True at about half of the targets, of which every row and column has both kinds where it can."""
        import torch

        shape = self.targets.shape
        rows = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        inner = torch.arange(self.targets[0].numel()).reshape(1, *shape[1:])
        return (rows + inner + (inner % 3 == 0).long()) % 2 == 0

    def _ordinary(self, targets: Tensor) -> Tensor:
        """The targets with an ordinary class in place of negative and of ignored ones."""
        named = getattr(self.loss_fn, "ignore_index", IGNORED)
        special = (targets < 0) | (targets == (named if isinstance(named, int) else IGNORED))
        if not bool(special.any()) or bool(special.all()):
            return targets
        return targets.masked_fill(special, int(targets[~special][0]))

    def _ignores_first_column(self) -> bool:
        """Whether the loss shifts the targets itself, so that the first target of a row is not used."""
        if not self.classes or self.targets.ndim != 2 or self.targets.shape[1] < 2:
            return False
        changed = self.targets.clone()
        changed[:, 0] = other_values(self.targets)[:, 0]
        if bool((changed == self.targets).all()):
            return False
        before, after = (float(self._total(self.outputs, targets)) for targets in (self.targets, changed))
        return before == after

    def _total(self, outputs: Any, targets: Tensor) -> Any:
        value = self.value(outputs, targets)
        return (value[0] if isinstance(value, tuple) else value).sum()

    # ------------------------------------------------------------------ halves

    def _halves(self) -> list[tuple[Any, Tensor]]:
        """Parts of a third and two thirds of the samples."""
        cut = max(1, len(self.original) // 3)
        return [
            (select_samples(self.outputs, len(self.original), part), self.original[part])
            for part in (slice(0, cut), slice(cut, len(self.original)))
        ]

    def _adds_up(self, form: LossForm) -> bool:
        """Whether the loss of the batch follows from those of two parts of it."""
        task = CustomTask(loss_fn=self.value, sample=None, form=form)
        total, count = 0.0, 0.0
        for outputs, targets in self._halves():
            part, number = task._summed(outputs, targets)
            total, count = total + float(part), count + float(number)
        whole, number = task._summed(self.outputs, self.original)
        return _close(total, float(whole)) and _close(count, float(number))


def _is_among(targets: Tensor, values: list[int]) -> Tensor:
    """Where targets are among the values."""
    import torch

    return torch.isin(targets, torch.tensor(values, dtype=targets.dtype))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-7)


def _range(targets: Tensor) -> str:
    return f"{float(targets.min()):g} to {float(targets.max()):g}"
