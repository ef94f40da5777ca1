"""Evaluations of a loss function on parts of a batch and with changed targets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flops_fit_core.api.loss_form.output_parts import select_samples
from flops_fit_core.api.loss_form.values import class_count, classes_without_gradient
from flops_fit_core.data.causality import other_values
from flops_fit_core.data.custom_task import IGNORED, CustomTask, LossForm, Reduction, is_classes

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
"""Relative difference up to which two losses count as equal; losses are computed in float32."""


class LossTrials:
    """One loss function on one batch, its parts, and changed targets.

    Args:
        value: Evaluates the loss function without gradients, with fixed random numbers.
        outputs: Outputs of the model.
        targets: Targets of the batch.
        loss_fn: The user's loss function.
    """

    def __init__(self, value: Callable[[Any, Any], Any], outputs: Any, targets: Tensor, loss_fn: object) -> None:
        self.value = value
        self.outputs = outputs
        self.loss_fn = loss_fn
        self.classes = is_classes(targets)
        self.original = targets
        self.targets = self._replace_ignored(targets) if self.classes else targets
        """The targets, with a class in place of ignored targets."""
        self._without_gradient: dict[bool, list[int]] = {}

    # ------------------------------------------------------------------ ignored targets

    def _ignored_classes(
        self, value: Callable[[Any, Any], Any], reduction: Reduction, shifted: bool
    ) -> tuple[int, ...]:
        """Class numbers that the loss ignores.

        For an ignored class: if it replaces one half of the targets, then the other half, the two sums of losses
        add up to the sum over all targets.
        """

        def total(targets: Tensor, ignored: int) -> float:
            rows = targets.reshape(len(targets), -1)[:, int(shifted) :]
            count = {"mean": int((rows != ignored).sum()), "mean-of-all": rows.numel(), "sum": 1}[reduction]
            return float(value(self.outputs, targets)) * count

        return self._find_ignored(total, shifted)

    def _classes_ignored_in_rows(self, shifted: bool) -> tuple[int, ...]:
        """The same for a loss of one mean per sample."""

        def total(targets: Tensor, ignored: int) -> float:
            rows = targets.reshape(len(targets), -1)[:, int(shifted) :]
            return float((self.value(self.outputs, targets).flatten() * (rows != ignored).sum(1)).sum())

        return self._find_ignored(total, shifted)

    def _find_ignored(self, total: Callable[[Tensor, int], float], shifted: bool) -> tuple[int, ...]:
        if not self.classes:
            return ()
        ignored: list[int] = []
        targets, mask = self.targets, self._half_mask()
        candidates = self._candidates(shifted)
        while candidates:
            value = next((value for value in candidates if self._is_ignored(value, total, targets, mask)), None)
            if value is None:
                break
            ignored.append(value)
            candidates.remove(value)
            ordinary = targets[~_is_in(targets, ignored)]
            if not len(ordinary):
                break
            targets = targets.masked_fill(targets == value, int(ordinary[0]))
        return tuple(ignored)

    def _is_ignored(
        self, value: int, total: Callable[[Tensor, int], float], targets: Tensor, mask: Tensor
    ) -> bool:
        targets = self._replace_class(value, targets)
        try:
            parts = [total(targets.masked_fill(part, value), value) for part in (mask, ~mask)]
            expected_sum = total(targets, value)
        except Exception:  # a loss function may raise anything for an invalid class
            return False
        return math.isfinite(expected_sum) and close(math.fsum(parts), expected_sum)

    def _replace_class(self, value: int, targets: Tensor) -> Tensor:
        """The targets with the most frequent other class in place of a value."""
        import torch

        classes, counts = torch.unique(targets[targets != value], return_counts=True)
        replacement = int(classes[counts.argmax()]) if len(classes) else int(value == 0)
        return targets.masked_fill(targets == value, replacement)

    def _candidates(self, shifted: bool) -> list[int]:
        import torch

        values, counts = torch.unique(self.original, return_counts=True)
        named = getattr(self.loss_fn, "ignore_index", None)
        first = [int(named)] if isinstance(named, int) else []
        frequent = int(values[counts.argmax()])
        likely = [*first, IGNORED, -1, 0, frequent, int(values.min()), int(values.max())]
        last = class_count(self.outputs, self.targets)
        if shifted not in self._without_gradient:
            self._without_gradient[shifted] = classes_without_gradient(
                self.loss_fn, self.outputs, self.targets, shifted=shifted
            )
        return list(dict.fromkeys([*likely, *([last - 1] if last else []), *self._without_gradient[shifted]]))

    def _half_mask(self) -> Tensor:
        """True at about half of the targets, with both values in every row and column if possible."""
        import torch

        shape = self.original.shape
        rows = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        inner = torch.arange(self.original[0].numel()).reshape(1, *shape[1:])
        return (rows + inner + (inner % 3 == 0).long()) % 2 == 0

    def _replace_ignored(self, targets: Tensor) -> Tensor:
        """The targets with a valid class in place of negative and ignored targets."""
        named = getattr(self.loss_fn, "ignore_index", IGNORED)
        special = (targets < 0) | (targets == (named if isinstance(named, int) else IGNORED))
        if not bool(special.any()) or bool(special.all()):
            return targets
        return targets.masked_fill(special, int(targets[~special][0]))

    def _ignores_first_column(self) -> bool:
        """Whether the loss shifts the targets, so that the first target of each row is not used."""
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

    # ------------------------------------------------------------------ parts of the batch

    def _parts(self, cut: int | None = None, targets: Tensor | None = None) -> list[tuple[Any, Tensor]]:
        """Outputs and targets of the first ``cut`` samples (by default a third), and of the remaining samples."""
        rows = self.original if targets is None else targets
        cut = max(1, len(rows) // 3) if cut is None else cut
        return [
            (select_samples(self.outputs, len(rows), part), rows[part])
            for part in (slice(0, cut), slice(cut, len(rows)))
        ]

    def _adds_up(self, form: LossForm) -> bool:
        """Whether the loss of the batch follows from the losses of two parts.

        Several cuts and other classes are tried: class weights may be equal on average in two parts.
        """
        task = CustomTask(loss_fn=self.value, sample=None, form=form)
        samples = len(self.original)
        if not self._adds_up_at(task, None, self.original):
            return False
        trials = [(cut, self.original) for cut in {1, samples // 2} - {0}]
        for cut, targets in [*trials, *((1, varied) for varied in self._other_classes(form))]:
            try:
                adds_up = self._adds_up_at(task, cut, targets)
            except Exception:  # an invalid class, or a single sample
                adds_up = True
            if not adds_up:
                return False
        return True

    def _adds_up_at(self, task: CustomTask, cut: int | None, targets: Tensor) -> bool:
        expected_sum, expected_count = task._summed(self.outputs, targets)
        if not math.isfinite(float(expected_sum)) and targets is not self.original:
            return True
        total, count = 0.0, 0.0
        for outputs, rows in self._parts(cut, targets):
            part, part_count = task._summed(outputs, rows)
            total, count = total + float(part), count + float(part_count)
        return close(total, float(expected_sum)) and close(count, float(expected_count))

    def _other_classes(self, form: LossForm) -> list[Tensor]:
        """Copies of the targets with one class in the first sample and a second class in all other samples."""
        if not self.classes:
            return []
        last = class_count(self.outputs, self.targets)
        classes = [0, 1, *([last - 1] if last else []), int(self.targets.max())]
        classes = list(dict.fromkeys(value for value in classes if value >= 0 and value not in form.ignored))
        changed = []
        for first, second in itertools.pairwise(classes):
            targets = self.targets.masked_fill(~_is_in(self.targets, list(form.ignored)), second)
            targets[0] = targets[0].masked_fill(targets[0] == second, first)
            changed.append(targets)
        return changed


def _is_in(targets: Tensor, values: list[int]) -> Tensor:
    """A mask of the targets that equal one of the values."""
    import torch

    return torch.isin(targets, torch.tensor(values, dtype=targets.dtype))


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-7)
