"""Trials of a loss function on parts of a batch and with other targets."""

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
"""Relative difference of two losses that are taken for equal; losses are computed in float32."""


class LossTrials:
    """One loss function on one batch: parts of it, and other targets."""

    def __init__(self, value: Callable[[Any, Any], Any], outputs: Any, targets: Tensor, loss_fn: object) -> None:
        self.value = value
        self.outputs = outputs
        self.loss_fn = loss_fn
        self.classes = is_classes(targets)
        self.original = targets
        self.targets = self._ordinary(targets) if self.classes else targets
        """Without ignored ones."""
        self._without_gradient: dict[bool, list[int]] = {}

    # ------------------------------------------------------------------ ignored targets

    def _ignored(self, value: Callable[[Any, Any], Any], reduction: Reduction, shifted: bool) -> tuple[int, ...]:
        """Class numbers that the loss leaves out: with them in place of one half of the targets, then of the
        other, the two sums are that of all targets."""

        def total(targets: Tensor, ignored: int) -> float:
            rows = targets.reshape(len(targets), -1)[:, int(shifted) :]
            count = {"mean": int((rows != ignored).sum()), "mean-of-all": rows.numel(), "sum": 1}[reduction]
            return float(value(self.outputs, targets)) * count

        return self._left_out(total, shifted)

    def _ignored_in_rows(self, shifted: bool) -> tuple[int, ...]:
        """The same for a mean of each sample."""

        def total(targets: Tensor, ignored: int) -> float:
            rows = targets.reshape(len(targets), -1)[:, int(shifted) :]
            return float((self.value(self.outputs, targets).flatten() * (rows != ignored).sum(1)).sum())

        return self._left_out(total, shifted)

    def _left_out(self, total: Callable[[Tensor, int], float], shifted: bool) -> tuple[int, ...]:
        if not self.classes:
            return ()
        ignored: list[int] = []
        targets, mask = self.targets, self._mask()
        candidates = self._candidates(shifted)
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
        targets = self._without(value, targets)
        try:
            parts = [total(targets.masked_fill(part, value), value) for part in (mask, ~mask)]
            whole = total(targets, value)
        except Exception:  # a loss function may raise anything for a class it does not have
            return False
        return math.isfinite(whole) and close(math.fsum(parts), whole)

    def _without(self, value: int, targets: Tensor) -> Tensor:
        """The targets with another class, the most frequent one, in place of a value."""
        import torch

        classes, counts = torch.unique(targets[targets != value], return_counts=True)
        other = int(classes[counts.argmax()]) if len(classes) else int(value == 0)
        return targets.masked_fill(targets == value, other)

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

    def _mask(self) -> Tensor:
        """True at about half of the targets, of which every row and column has both kinds where it can."""
        import torch

        shape = self.original.shape
        rows = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        inner = torch.arange(self.original[0].numel()).reshape(1, *shape[1:])
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

    def _halves(self, cut: int | None = None, targets: Tensor | None = None) -> list[tuple[Any, Tensor]]:
        """Parts of some samples and of the others, by default of a third and two thirds."""
        rows = self.original if targets is None else targets
        cut = max(1, len(rows) // 3) if cut is None else cut
        return [
            (select_samples(self.outputs, len(rows), part), rows[part])
            for part in (slice(0, cut), slice(cut, len(rows)))
        ]

    def _adds_up(self, form: LossForm) -> bool:
        """Whether the loss of the batch follows from those of two parts of it, wherever it is cut and whatever the
        classes are: weights of classes could be equal on average in both parts."""
        task = CustomTask(loss_fn=self.value, sample=None, form=form)
        samples = len(self.original)
        if not self._adds_up_at(task, None, self.original):
            return False
        trials = [(cut, self.original) for cut in {1, samples // 2} - {0}]
        for cut, targets in [*trials, *((1, others) for others in self._other_classes(form))]:
            try:
                fits = self._adds_up_at(task, cut, targets)
            except Exception:  # a class that the loss does not have, or one sample alone
                fits = True
            if not fits:
                return False
        return True

    def _adds_up_at(self, task: CustomTask, cut: int | None, targets: Tensor) -> bool:
        whole, number = task._summed(self.outputs, targets)
        if not math.isfinite(float(whole)) and targets is not self.original:
            return True
        total, count = 0.0, 0.0
        for outputs, rows in self._halves(cut, targets):
            part, some = task._summed(outputs, rows)
            total, count = total + float(part), count + float(some)
        return close(total, float(whole)) and close(count, float(number))

    def _other_classes(self, form: LossForm) -> list[Tensor]:
        """The targets with one class in the first sample and another one in the others, in place of valid ones."""
        if not self.classes:
            return []
        last = class_count(self.outputs, self.targets)
        classes = [0, 1, *([last - 1] if last else []), int(self.targets.max())]
        classes = list(dict.fromkeys(value for value in classes if value >= 0 and value not in form.ignored))
        changed = []
        for first, second in itertools.pairwise(classes):
            targets = self.targets.masked_fill(~_is_among(self.targets, list(form.ignored)), second)
            targets[0] = targets[0].masked_fill(targets[0] == second, first)
            changed.append(targets)
        return changed


def _is_among(targets: Tensor, values: list[int]) -> Tensor:
    """Where targets are among the values."""
    import torch

    return torch.isin(targets, torch.tensor(values, dtype=targets.dtype))


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-7)
