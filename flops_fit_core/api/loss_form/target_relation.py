"""The relation of targets to the inputs of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from flops_fit_core.data.causality import depends_on_later_inputs, fill_zero_weights
from flops_fit_core.data.custom_task import IGNORED, CustomTask, is_classes, logits_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.plugins.protocols import Batch


Relation = Literal["", "copy", "next"]
"""Relation of class-number targets to inputs at every valid position of every batch.

``copy``: the target is the input at its position or the previous input. ``next``: the target is the next input.
"""


def target_relation(task: CustomTask, batches: Iterable[Batch]) -> Relation:
    """Relation of targets to inputs; empty without class numbers, or if any position differs.

    Batches without a valid target are skipped. For one target per sample, only ``copy`` can be found.
    """
    relations: set[Relation] = {"copy", "next"}
    has_valid = False
    for batch in batches:
        targets = task.targets_of(batch)
        inputs = _matching_inputs(task, batch, targets)
        if inputs is None or targets.ndim > 2 or (targets.ndim == 2 and targets.shape[1] < 2):
            return ""
        if not bool((targets != IGNORED).any()):
            continue
        has_valid = True
        relations &= _batch_relations(inputs.long(), targets.long())
    if not has_valid:
        return ""
    return "copy" if "copy" in relations else "next" if "next" in relations else ""


def copied_share(task: CustomTask, batches: Iterable[Batch]) -> float:
    """Share of the valid targets of sequences that equal the input at their position."""
    same, valid = 0, 0
    for batch in batches:
        targets = task.targets_of(batch)
        inputs = _matching_inputs(task, batch, targets)
        if inputs is None or targets.ndim != 2:
            return 0.0
        counted = targets != IGNORED
        same += int(((inputs.long() == targets.long()) & counted).sum())
        valid += int(counted.sum())
    return same / valid if valid else 0.0


def _batch_relations(inputs: Tensor, targets: Tensor) -> set[Relation]:
    def agree(seen: Tensor, expected: Tensor) -> bool:
        valid = expected != IGNORED
        return bool(valid.any()) and bool((seen == expected)[valid].all())

    relations: set[Relation] = set()
    if inputs.ndim == 1:
        return {"copy"} if agree(inputs, targets) else set()
    if agree(inputs, targets) or agree(inputs[:, :-1], targets[:, 1:]):
        relations.add("copy")
    if agree(inputs[:, 1:], targets[:, :-1]):
        relations.add("next")
    return relations


def _matching_inputs(task: CustomTask, batch: Batch, targets: Tensor) -> Tensor | None:
    """The input of class numbers with the shape of the targets."""
    import torch

    if not is_classes(targets):
        return None
    if isinstance(batch, Mapping):
        names = sorted((name for name in batch if name != task.targets), key=lambda name: name != "input_ids")
        inputs = [batch[name] for name in names]
    else:
        inputs = [batch[0] if isinstance(batch, list | tuple) else batch]
    fitting = (
        item
        for item in inputs
        if isinstance(item, torch.Tensor) and is_classes(item) and item.shape == targets.shape
    )
    return next(fitting, None)


def name_targets_argument(task: CustomTask, model: nn.Module, batch: Batch) -> CustomTask:
    """The task with the name of the model's argument for targets, if the model needs them.

    A model needs targets if it returns logits for every position only with them, or if it computes the decoder's
    inputs from them.
    """
    targets = task.targets_of(batch)
    if _decodes_from_labels(model, batch) and is_classes(targets) and targets.ndim == 2:
        return replace(task, form=replace(task.form, targets_argument=task.targets))
    if task.loss_fn is not None or not is_classes(targets):
        return task
    logits = logits_of(task.outputs(model, batch))
    if getattr(logits, "shape", (None,))[:-1] == targets.shape:
        return task
    parameters = inspect.signature(model.forward).parameters
    for name in ("targets", "labels", "target", "y"):
        if name in parameters:
            named = replace(task, form=replace(task.form, targets_argument=name))
            if getattr(logits_of(named.outputs(model, batch)), "shape", (None,))[:-1] == targets.shape:
                return named
    return task


def _decodes_from_labels(model: nn.Module, batch: Batch) -> bool:
    """Whether an encoder-decoder model from transformers must shift the decoder's inputs from the labels.

    Without labels, T5 has no decoder inputs, and BART uses those of the encoder.
    """
    if not isinstance(batch, Mapping) or not _is_transformers_model(model):
        return False
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is not True:
        return False
    decoder_inputs = {"decoder_input_ids", "decoder_inputs_embeds", "encoder_outputs"} & set(batch)
    return not decoder_inputs and "labels" in inspect.signature(model.forward).parameters


def sees_later_inputs(task: CustomTask, model: nn.Module, batch: Batch) -> bool | None:
    """Whether the logits at any position depend on a later input. None if this cannot be tested.

    Changes weights of the model: pass a model that is not used afterwards.
    """
    import torch

    ids = _matching_inputs(task, batch, task.targets_of(batch))
    if ids is None:
        return None
    fill_zero_weights(model)

    def logits(changed: Tensor) -> Any:
        return logits_of(task.outputs(model, _with_ids(task, batch, ids, changed)))

    with torch.no_grad():
        return depends_on_later_inputs(logits, ids)


def _with_ids(task: CustomTask, batch: Batch, ids: Tensor, changed: Tensor) -> Batch:
    if isinstance(batch, Mapping):
        return {name: changed if item is ids else item for name, item in batch.items()}
    return [changed, *batch[1:]] if isinstance(batch, list | tuple) else changed


def is_transformers_causal(model: nn.Module) -> bool:
    """Whether a model is a causal language model from transformers, which shifts labels itself."""
    names = _transformers_classes(model)
    return "PreTrainedModel" in names and any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _is_transformers_model(model: nn.Module) -> bool:
    return "PreTrainedModel" in _transformers_classes(model)


def _transformers_classes(model: nn.Module) -> list[str]:
    return [kind.__name__ for kind in type(model).__mro__ if kind.__module__.partition(".")[0] == "transformers"]
