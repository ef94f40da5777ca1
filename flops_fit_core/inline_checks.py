"""Checks of a user's data against a model of the study, and statements about the data for the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flops_fit_core.custom_task import IGNORED, CustomTask, LossForm, Reduction, is_classes
from flops_fit_core.errors import DataError
from flops_fit_core.loss_probe import find_form
from flops_fit_core.target_relation import (
    is_transformers_causal,
    name_targets_argument,
    relation_of,
    sees_later_inputs,
)

if TYPE_CHECKING:
    from torch import nn

    from flops_fit_core.contracts import Batch, SampleSize

SHIFT = "give rows shifted by one: (row[:-1], row[1:]), or {'input_ids': row[:-1], 'labels': row[1:]}"
COPY = "If the model is meant to see its targets (a masked language model, an autoencoder), pass copy_task=True"
PADDING_SHARE = 0.05
"""Least share of the targets, at the ends of rows and all the same class, that is taken for padding."""
FORMS = {
    "sum": "a sum over the targets of a batch",
    "mean": "a mean over the targets of a batch",
    "mean-of-all": "a sum over the targets of a batch divided by the number of all, ignored ones included",
    "mean-of-sample-sums": "a mean over samples of sums over their targets",
    "values": "one value for each target",
    "sample-sum": "one value for each sample, the sum over its targets",
    "sample-mean": "one value for each sample, the mean over its targets; samples are weighted by their targets",
    "sample-mean-of-all": "one value for each sample, the sum over its targets divided by the number of all of "
    "them",
    "pair": "a sum and a count",
    "batch": "a value for a whole batch, which is not divided",
}


def find_loss_form(
    task: CustomTask,
    model: nn.Module | None,
    batches: Sequence[Batch],
    *,
    stated: Reduction | None,
    copy_task: bool,
) -> LossForm:
    """The form of the loss, for this model and these data.

    Args:
        task: Of the data.
        model: A small model of the study, on the CPU, in evaluation mode. Its values may change. None if there is
            no small one: then the user has to state what cannot be tried.
        batches: A few batches of training samples.
        stated: The form of the loss function by the user's word.
        copy_task: Whether the model is meant to see its targets.

    Raises DataError if the model sees its targets and is not meant to, or if the loss has no known form.
    """
    if model is None:
        return _untested_form(task, batches, stated=stated, copy_task=copy_task)
    batch = batches[0] if len(task.targets_of(batches[0])) > 1 or len(batches) < 2 else batches[1]
    small = _first_samples(batch, 3) if task.targets_of(batch).numel() > 4096 else batch
    _check_outputs(task, model, small, stated)
    task = name_targets_argument(task, model, small)
    if task.loss_fn is None:
        ignored = (IGNORED,) if is_classes(task.targets_of(batch)) else ()
        form = replace(task.form, reduction="sum", ignored=ignored)
    else:
        form = find_form(task, model, small, stated)
    task = replace(task, form=form)
    if copy_task:
        return form
    return _check_targets(task, model, batches)


def _untested_form(
    task: CustomTask, batches: Sequence[Batch], *, stated: Reduction | None, copy_task: bool
) -> LossForm:
    if task.loss_fn is not None and stated is None:
        raise DataError(
            "the study has no model that is small enough to find the form of loss_fn: pass loss_reduction='mean', "
            "'sum', 'sample-mean', 'sample-sum' or 'batch'"
        )
    if not copy_task and relation_of(task, batches) == "copy":
        raise DataError(f"the targets are the inputs. To predict the next token, {SHIFT}. {COPY}")
    return LossForm(stated or "sum")


def _check_outputs(task: CustomTask, model: nn.Module, batch: Batch, stated: Reduction | None) -> None:
    """Raises DataError for a model that returns its own loss."""
    import torch

    outputs = task.outputs(model, batch)
    if isinstance(outputs, torch.Tensor) and outputs.ndim == 0 and stated != "batch":
        raise DataError(
            f"{type(model).__name__} returned a scalar, its own loss: return the logits, of which flops-fit "
            "computes the loss; or pass loss_fn=lambda loss, targets: loss with loss_reduction='batch'"
        )


def _check_targets(task: CustomTask, model: nn.Module, batches: Sequence[Batch]) -> LossForm:
    """The form, with labels shifted if they are the inputs of a causal model of transformers."""
    relation = relation_of(task, batches)
    if not relation:
        return task.form
    batch = _first_samples(batches[0], 2)
    sees_later = sees_later_inputs(task, model, batch)
    if relation == "copy" and not task.form.shifted:
        if task.loss_fn is not None or not is_transformers_causal(model):
            raise DataError(
                "the targets are the inputs: on every valid position of the first batches, the target is a token "
                f"that the model is given there, so it would learn to copy. To predict the next token, {SHIFT}. "
                f"{COPY}"
            )
        if sees_later is not False:
            raise DataError(
                f"the labels are the inputs and {type(model).__name__} is not causal (its output at a position "
                "depends on later inputs), so shifting them would show it the targets. Use a causal "
                f"configuration. {COPY}"
            )
        return replace(task.form, shifted=True)
    if sees_later:
        raise DataError(
            f"the model sees its targets: they are the next inputs, and the output of {type(model).__name__} at a "
            f"position depends on later inputs. Make it causal (an attention mask, padding on the left of a "
            f"convolution). {COPY}"
        )
    return task.form


def _first_samples(batch: Batch, count: int) -> Batch:
    from flops_fit_core.training.batches import part

    return part(batch, 0, count)


# ---------------------------------------------------------------------------- notes


def data_notes(task: CustomTask, size: SampleSize, samples: int, batches: Sequence[Batch]) -> list[str]:
    """Statements about the form of the loss, the valid share of the data, and padding.

    Args:
        task: Of the data.
        size: Mean size of a training sample.
        samples: How many were measured.
        batches: A few batches of training samples.
    """
    return [*_notes_of_loss(task), *_notes_of_targets(task, size, samples, batches)]


def _notes_of_loss(task: CustomTask) -> list[str]:
    form, notes = task.form, []
    if task.loss_fn is not None and form.reduction != "auto":
        ignored = f", without targets {', '.join(map(str, form.ignored))}" if form.ignored else ""
        notes.append(f"loss_fn returns {FORMS[form.reduction]}{ignored}")
    if form.shifted:
        by = (
            "loss_fn"
            if task.loss_fn is not None
            else "flops-fit, as transformers does for labels equal to input_ids"
        )
        notes.append(f"targets are the inputs shifted by one, by {by}")
    if form.targets_argument:
        notes.append(
            f"the model is given the targets as {form.targets_argument!r}, without which it has no logits for "
            "every position; its own loss is not used"
        )
    return notes


def _notes_of_targets(task: CustomTask, size: SampleSize, samples: int, batches: Sequence[Batch]) -> list[str]:
    notes: list[str] = []
    if not task.counts_targets:
        return notes
    if abs(size.tokens / size.positions - 1) > 1e-9:
        notes.append(
            f"D counts valid targets, {size.tokens / size.positions:.2%} of the positions in a fixed sample of "
            f"{samples:,} training samples; C counts every position, and results hold the measured D, C and share"
        )
    padding = _padding_of(task, batches)
    if padding is not None:
        share, value = padding
        notes.append(
            f"{share:.0%} of the targets are {value} at the end of a row. If that is padding, set those targets "
            f"to {IGNORED}: otherwise D and the loss count them"
        )
    return notes


def _padding_of(task: CustomTask, batches: Sequence[Batch]) -> tuple[float, int] | None:
    """Share and class of valid targets that look like padding: runs of one class at the ends of rows."""
    if task.targets_of(batches[0]).ndim != 2 or task.targets_of(batches[0]).shape[1] < 4:
        return None
    masked, valid = 0, 0
    runs: dict[int, int] = {}
    for batch in batches:
        targets = task.targets_of(batch)
        counted = targets != IGNORED
        valid += int(counted.sum())
        if isinstance(batch, Mapping) and getattr(batch.get("attention_mask"), "shape", None) == targets.shape:
            masked += int((counted & (batch["attention_mask"] == 0)).sum())
        for row in targets:
            last = int(row[-1])
            other = (row != last).nonzero()
            length = len(row) - (int(other[-1]) + 1 if len(other) else 0)
            if length > 2 and last != IGNORED:
                runs[last] = runs.get(last, 0) + length
    if not runs or not valid:
        return None
    value = max(runs, key=lambda last: runs[last])
    share = max(runs[value], masked) / valid
    return (share, value) if share >= PADDING_SHARE else None
