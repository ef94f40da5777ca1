"""Checks of a user's data with a model of the study, and notes on the data for the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flops_fit_core.api.data_checks.first_batch import batch_targets
from flops_fit_core.api.loss_form.probe import find_form
from flops_fit_core.api.loss_form.target_relation import (
    copied_share,
    is_transformers_causal,
    name_targets_argument,
    sees_later_inputs,
    target_relation,
)
from flops_fit_core.data.custom_task import (
    IGNORED,
    CustomTask,
    LossForm,
    Reduction,
    default_loss,
    is_classes,
    logits_of,
)
from flops_fit_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.plugins.protocols import Batch, SampleSize

SHIFT_ADVICE = "pass rows shifted by one: (row[:-1], row[1:]), or {'input_ids': row[:-1], 'labels': row[1:]}"
COPY_ADVICE = "If the model may see its targets (a masked language model, an autoencoder), pass copy_task=True"
MIN_PADDING_SHARE = 0.05
"""Equal targets at the ends of rows count as padding from this share of the targets on."""
FORM_DESCRIPTIONS = {
    "sum": "a sum over the targets of a batch",
    "mean": "a mean over the targets of a batch",
    "mean-of-all": "a sum over the targets of a batch divided by the number of all targets, ignored targets "
    "included",
    "mean-of-sample-sums": "a mean over samples of sums over their targets",
    "values": "one value per target",
    "sample-sum": "one value per sample, the sum over its targets",
    "sample-mean": "one value per sample, the mean over its targets; samples are weighted by their number of "
    "targets",
    "sample-mean-of-all": "one value per sample, the sum over its targets divided by the number of all targets",
    "pair": "a sum and a count",
    "batch": "a value per batch; batches are not divided",
}


def find_loss_form(
    task: CustomTask,
    model: nn.Module | None,
    batches: Sequence[Batch],
    *,
    stated: Reduction | None,
    copy_task: bool,
) -> LossForm:
    """The form of the loss for a model and its data.

    Args:
        task: The task of the data.
        model: A small model of the study, on the CPU, in evaluation mode. Its weights may change. None if the
            study has no small model: then the user must state the form of ``loss_fn``.
        batches: A few batches of training samples.
        stated: The form of the loss function as stated by the user (``loss_reduction``).
        copy_task: Whether the model may see its targets.

    Raises DataError if the model sees its targets but must not, or if the form of the loss is not supported.
    """
    if model is None:
        return _untested_form(task, batches, stated=stated, copy_task=copy_task)
    batch = batches[0] if len(task.targets_of(batches[0])) > 1 or len(batches) < 2 else batches[1]
    small = _first_samples(batch, 3) if task.targets_of(batch).numel() > 4096 else batch
    task = name_targets_argument(task, model, small)
    returns_loss = _check_outputs(task, model, small, stated)
    if task.loss_fn is None:
        _check_default_loss(task, model, small, batches)
        ignored = (IGNORED,) if is_classes(task.targets_of(batch)) else ()
        form = replace(task.form, reduction="sum", ignored=ignored)
    else:
        form = find_form(task, model, small, stated)
    task = replace(task, form=form)
    if copy_task or returns_loss:
        return form
    return _check_targets(task, model, batches)


def _untested_form(
    task: CustomTask, batches: Sequence[Batch], *, stated: Reduction | None, copy_task: bool
) -> LossForm:
    if task.loss_fn is not None and stated is None:
        raise DataError(
            "no model of the study is small enough to find the form of loss_fn: pass loss_reduction='mean', "
            "'sum', 'sample-mean', 'sample-sum' or 'batch'"
        )
    if not copy_task and target_relation(task, batches) == "copy":
        raise DataError(f"the targets are the inputs. To predict the next token, {SHIFT_ADVICE}. {COPY_ADVICE}")
    return LossForm(stated or "sum")


def batches_with_valid_targets(
    task: CustomTask, read: Callable[[int], Sequence[Batch]], count: int, limit: int
) -> Sequence[Batch]:
    """The first ``count`` batches with a valid target.

    Only the first ``limit`` batches are searched; if none has a valid target, the first batches are returned.
    ``read(n)`` returns the first n batches.
    """

    def is_valid(batch: Batch) -> bool:
        return not is_classes(task.targets_of(batch)) or bool((task.targets_of(batch) != IGNORED).any())

    first = read(count)
    if all(is_valid(batch) for batch in first):
        return first
    return [batch for batch in read(limit) if is_valid(batch)][:count] or first


def _check_outputs(task: CustomTask, model: nn.Module, batch: Batch, stated: Reduction | None) -> bool:
    """Whether the model returns its loss instead of outputs.

    Raises DataError if it does so without ``loss_reduction='batch'``, or has an auxiliary loss that would be
    ignored.
    """
    import torch

    outputs = task.outputs(model, batch)
    returns_loss = isinstance(outputs, torch.Tensor) and outputs.ndim == 0
    if returns_loss and stated != "batch":
        raise DataError(
            f"{type(model).__name__} returned a scalar, its own loss: return the logits, from which flops-fit "
            "computes the loss, or pass loss_fn=lambda loss, targets: loss with loss_reduction='batch'"
        )
    if task.loss_fn is None and isinstance(getattr(outputs, "aux_loss", None), torch.Tensor):
        raise DataError(
            f"{type(model).__name__} returned an aux_loss (of its routers), which cross-entropy does not include: "
            "build the model with output_router_logits=False to train without it, or pass a "
            "loss_fn(outputs, targets) that adds it, with loss_reduction='batch'"
        )
    return returns_loss


def _check_default_loss(task: CustomTask, model: nn.Module, batch: Batch, batches: Sequence[Batch]) -> None:
    """Raises DataError for targets outside the model's classes, and for a loss that is not finite."""
    import torch

    outputs = task.outputs(model, batch)
    targets = task.targets_of(batch)
    shape = tuple(getattr(logits_of(outputs), "shape", ()))
    if is_classes(targets):
        if shape[:-1] != tuple(targets.shape):
            return
        for other in batches:
            rows = task.targets_of(other)
            wrong = rows[(rows != IGNORED) & ((rows < 0) | (rows >= shape[-1]))]
            if len(wrong):
                raise DataError(
                    f"a target is {int(wrong[0])}, but the model's outputs of shape {shape} have classes 0 to "
                    f"{shape[-1] - 1}. Mark targets that do not count with {IGNORED}; pass real-valued targets as "
                    "floating-point numbers"
                )
    elif not shape or logits_of(outputs).numel() != targets.numel():
        return
    elif any(bool(task.targets_of(other).isnan().any()) for other in batches):
        raise DataError(
            "targets of the first samples are NaN, so every run would diverge: remove these samples, or pass a "
            "loss_fn that returns (sum over the other targets, number of other targets)"
        )
    loss, _ = default_loss(outputs, targets)
    if not bool(torch.isfinite(loss)):
        invalid = [
            name for name, item in _tensors_of(batch) if item.is_floating_point() and not item.isfinite().all()
        ]
        cause = f" ({', '.join(invalid)} contain NaN or infinity)" if invalid else ""
        raise DataError(f"the loss of the first samples is {float(loss)}{cause}: every run would diverge")


def _tensors_of(batch: Batch) -> list[tuple[str, Tensor]]:
    import torch

    if isinstance(batch, Mapping):
        items = [(str(name), item) for name, item in batch.items()]
    else:
        items = list(
            zip(("inputs", "targets"), batch if isinstance(batch, list | tuple) else [batch], strict=False)
        )
    return [(name, item) for name, item in items if isinstance(item, torch.Tensor)]


def check_eval_data(
    task: CustomTask, model: nn.Module, batches: Sequence[Batch], held: Batch | None, *, copy_task: bool
) -> None:
    """Raises DataError if held-out samples differ in kind from training samples.

    Args:
        task: The task, with the form of the loss.
        model: A small model of the study, on the CPU, in evaluation mode.
        batches: Batches of training samples.
        held: A batch of held-out samples; None if the held-out dataset is empty.
        copy_task: Whether the model may see its targets.
    """
    if held is None:
        raise DataError("eval_dataset has no samples: pass another dataset, or leave eval_dataset out")
    training, targets = task.targets_of(batches[0]), batch_targets(held)
    if is_classes(training) != is_classes(targets) or training.ndim != targets.ndim:
        raise DataError(
            f"targets of eval_dataset are {_kind(targets)}, but targets of the training data are {_kind(training)}: "
            "both must be of the same kind"
        )
    try:
        task.loss(task.outputs(model, held), held)
    except Exception as error:
        raise DataError(
            f"eval_dataset does not fit the model and the loss: {type(error).__name__}: {error}"
        ) from error
    relations = [target_relation(task, batches), target_relation(task, [held])]
    if not copy_task and "copy" in relations and relations[0] != relations[1] and all(relations):
        names = ["the inputs" if relation == "copy" else "the next inputs" for relation in relations]
        raise DataError(
            f"targets of eval_dataset are {names[1]}, but targets of the training data are {names[0]}, so these are "
            "different tasks: pass both in one form (rows, or a DataLoader with the same collate_fn)"
        )


def _kind(targets: Tensor) -> str:
    numbers = "class numbers" if is_classes(targets) else "real numbers"
    return f"{numbers} of shape (samples{''.join(f', {size}' for size in targets.shape[1:])})"


def _check_targets(task: CustomTask, model: nn.Module, batches: Sequence[Batch]) -> LossForm:
    """The form, with shifted labels if they are the inputs of a causal model from transformers."""
    relation = target_relation(task, batches)
    if not relation:
        _check_most_targets(task, model, batches)
        return task.form
    batch = _first_samples(batches[0], 2)
    sees_later = sees_later_inputs(task, model, batch)
    if relation == "copy" and not task.form.shifted:
        if task.loss_fn is not None or not is_transformers_causal(model):
            raise DataError(
                "the targets are the inputs: at every valid position of the first batches, the target is an input "
                f"token, so the model would learn to copy. To predict the next token, {SHIFT_ADVICE}. "
                f"{COPY_ADVICE}"
            )
        if sees_later is not False:
            raise DataError(
                f"the labels are the inputs and {type(model).__name__} is not causal (its output at a position "
                "depends on later inputs), so with shifted labels it would see its targets. Use a causal "
                f"configuration. {COPY_ADVICE}"
            )
        return replace(task.form, shifted=True)
    if sees_later:
        raise DataError(
            f"the model sees its targets: they are the next inputs, and the output of {type(model).__name__} at a "
            f"position depends on later inputs. Make it causal (an attention mask, padding on the left of a "
            f"convolution). {COPY_ADVICE}"
        )
    return task.form


def _check_most_targets(task: CustomTask, model: nn.Module, batches: Sequence[Batch]) -> None:
    """Raises DataError for a causal model from transformers if most, but not all, labels are its inputs."""
    if task.loss_fn is not None or not is_transformers_causal(model):
        return
    share = copied_share(task, batches)
    if share > 0.5:
        raise DataError(
            f"{share:.0%} of the labels equal the input at their position, the rest do not. transformers' "
            f"{type(model).__name__} would shift these labels by one; flops-fit shifts labels only if all of them "
            f"equal the inputs. To predict the next token, {SHIFT_ADVICE}. {COPY_ADVICE}"
        )


def _first_samples(batch: Batch, count: int) -> Batch:
    from flops_fit_core.training.batches import part

    try:
        return part(batch, 0, count)
    except ValueError:  # the batch contains values that do not belong to a sample
        return batch


# ---------------------------------------------------------------------------- notes


def data_notes(task: CustomTask, size: SampleSize, samples: int, batches: Sequence[Batch]) -> list[str]:
    """Notes on the form of the loss, the valid share of the data, and padding.

    Args:
        task: The task of the data.
        size: Mean size of a training sample.
        samples: Number of samples that were measured.
        batches: A few batches of training samples.
    """
    return [*_loss_notes(task), *_target_notes(task, size, samples, batches)]


def _loss_notes(task: CustomTask) -> list[str]:
    form, notes = task.form, []
    if task.loss_fn is not None and form.reduction != "auto":
        ignored = f", without targets {', '.join(map(str, form.ignored))}" if form.ignored else ""
        notes.append(f"loss_fn returns {FORM_DESCRIPTIONS[form.reduction]}{ignored}")
    if form.shifted:
        source = (
            "loss_fn"
            if task.loss_fn is not None
            else "flops-fit, as transformers does for labels equal to input_ids"
        )
        notes.append(f"targets are the inputs shifted by one, by {source}")
    if form.targets_argument:
        notes.append(
            f"the model receives the targets as {form.targets_argument!r}, because it returns logits for every "
            "position only then; its own loss is not used"
        )
    return notes


def _target_notes(task: CustomTask, size: SampleSize, samples: int, batches: Sequence[Batch]) -> list[str]:
    notes: list[str] = []
    if not task.counts_targets:
        return notes
    if abs(size.tokens / size.positions - 1) > 1e-9:
        notes.append(
            f"D counts valid targets, {size.tokens / size.positions:.2%} of the positions in a fixed sample of "
            f"{samples:,} training samples; C counts every position. Results contain the measured D, C and share"
        )
    padding = _find_padding(task, batches)
    if padding is not None:
        share, value = padding
        notes.append(
            f"{share:.0%} of the targets are {value} at the end of a row. If this is padding, set these targets "
            f"to {IGNORED}; otherwise D and the loss count them"
        )
    return notes


def _find_padding(task: CustomTask, batches: Sequence[Batch]) -> tuple[float, int] | None:
    """Share and class of valid targets that may be padding: repetitions of one class at the ends of rows."""
    if task.targets_of(batches[0]).ndim != 2 or task.targets_of(batches[0]).shape[1] < 4:
        return None
    masked, valid = 0, 0
    runs: dict[int, int] = {}
    for batch in batches:
        targets = task.targets_of(batch)
        counted = targets != IGNORED
        for value in task.form.ignored:
            counted = counted & (targets != value)
        valid += int(counted.sum())
        if isinstance(batch, Mapping) and getattr(batch.get("attention_mask"), "shape", None) == targets.shape:
            masked += int((counted & (batch["attention_mask"] == 0)).sum())
        for row in targets:
            last = int(row[-1])
            different = (row != last).nonzero()
            length = len(row) - (int(different[-1]) + 1 if len(different) else 0)
            if length > 2 and last not in (IGNORED, *task.form.ignored):
                runs[last] = runs.get(last, 0) + length
    if not runs or not valid:
        return None
    value = max(runs, key=lambda last: runs[last])
    share = max(runs[value], masked) / valid
    return (share, value) if share >= MIN_PADDING_SHARE else None
