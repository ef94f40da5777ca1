"""Counts the parameters of a model: total, in lookup tables, in the output head, active per token."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flops_fit_core.config import PluginConfig
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import PlanError, PluginError
from flops_fit_core.flops.parameter_usage import ParameterUsage, Use, trace_usage
from flops_fit_core.plugins.protocols import ParameterGroup, Task
from flops_fit_core.plugins.specs import ModelSpec
from flops_fit_core.records import ParameterCounts

if TYPE_CHECKING:
    from torch import Tensor, nn


SHORT_CONTEXT = 32
"""Sequence length of traces. The use of parameters does not depend on the context."""
TRACED_SAMPLES = 2
UNTRACED = ParameterUsage({})
"""No trace: parameters are classified by module types."""


def short_task(task: Task) -> Task:
    """A language task with a short context; other tasks unchanged."""
    if isinstance(task, LanguageTask):
        return replace(task, context=min(task.context, SHORT_CONTEXT))
    return task


def trace_module(module: nn.Module, task: Task) -> ParameterUsage:
    """How a forward pass of a module uses its parameters; ``UNTRACED`` if it cannot be traced.

    A module with values is copied first, because a pass changes running statistics.
    """
    import torch

    is_meta = any(parameter.is_meta for parameter in module.parameters())
    try:
        with torch.random.fork_rng(devices=[]):
            return trace_example(module if is_meta else copy.deepcopy(module), task, math.inf)
    except Exception:  # a user's module may raise anything
        return UNTRACED


def trace_example(module: nn.Module, task: Task, limit: float) -> ParameterUsage:
    import torch

    device = next(parameter.device for parameter in module.parameters())
    with device, torch.no_grad():
        batch = task.example(TRACED_SAMPLES)
        tokens = TRACED_SAMPLES * task.tokens_per_sample
        return trace_usage(module, batch, lambda: task.outputs(module, batch), TRACED_SAMPLES, tokens, limit)


def count_parameters(
    module: nn.Module,
    task: Task,
    groups: Iterable[ParameterGroup] = (),
    usage: ParameterUsage | None = None,
) -> ParameterCounts:
    """Count parameters, each once.

    A lookup table is looked up and never multiplied. The output head is the matrix (and bias) of the product that
    returns the outputs of a language task. Of both, the parameters that are active per token are counted.

    Args:
        module: The model. Its ``num_params()`` replaces the total, see :func:`num_params_of`.
        task: The task: it provides the batch of the trace, and language tasks have a head.
        groups: Groups that state the share of parameters that is active per token.
        usage: How a forward pass uses the parameters; None to trace this module now. With ``UNTRACED``, as after a
            failed trace, parameters are classified by module types (:func:`tables_by_type`, :func:`head_by_type`).

    Raises PlanError for a model without parameters, and if ``num_params()`` omits inactive parameters.
    """
    groups = list(groups)
    shares = {id(parameter): group.active for group in groups for parameter in group.parameters}
    inactive = round(
        sum((1 - group.active) * sum(parameter.numel() for parameter in group.parameters) for group in groups)
    )

    def count_active(parameter: Tensor) -> float:
        return shares.get(id(parameter), 1.0) * parameter.numel()

    stated_total = num_params_of(module)
    if stated_total is not None:
        total = stated_total
        if inactive >= total:
            raise PlanError(
                f"{type(module).__name__}: num_params() returned {total:,}, but its parameter groups contain "
                f"{inactive:,} inactive parameters: num_params() must count these too"
            )
        return ParameterCounts(total=total, active=total - inactive)
    total = sum(parameter.numel() for parameter in module.parameters())
    if total < 1:
        raise PlanError(f"{type(module).__name__} has no parameters: there is nothing to train")
    usage = trace_module(module, task) if usage is None else usage
    uses = usage.of([name for name, _ in module.named_parameters()])
    tables, head = tables_by_type(module), head_by_type(module, task)
    if uses is not None:
        named = dict(module.named_parameters())
        is_embedding = {id(table) for table in tables}
        tables = [part for name, part in named.items() if is_table(part, uses[name], id(part) in is_embedding)]
        head = [
            part for name, part in named.items() if uses[name].head and _has_vocabulary_size(part, usage, task)
        ]
    lookup, unembedding = sum(map(count_active, tables)), sum(map(count_active, head))
    return ParameterCounts(
        total=total, lookup_table=round(lookup), unembedding=round(unembedding), active=total - inactive
    )


def num_params_of(module: nn.Module) -> int | None:
    """The result of the model's ``num_params()``, or None without this method.

    Methods with arguments, such as nanoGPT's ``num_params(non_embedding=True)``, follow other conventions and are
    not used. Raises PlanError if the method fails or does not return a positive integer.
    """
    method = getattr(module, "num_params", None)
    if not callable(method) or inspect.signature(method).parameters:
        return None
    try:
        total = method()
        number = int(total)
    except Exception as error:
        raise PlanError(
            f"{type(module).__name__}: num_params() raised {type(error).__name__}: {error}. It must return the "
            f"number of parameters. Without this method, flops-fit counts them"
        ) from error
    if number < 1 or number != total:
        raise PlanError(
            f"{type(module).__name__}: num_params() returned {total!r}. It must return the number of parameters, "
            "an integer above 0. Without this method, flops-fit counts them"
        )
    return number


def tables_by_type(module: nn.Module) -> list[nn.Parameter]:
    """Weights of ``nn.Embedding`` and ``nn.EmbeddingBag`` that no other module shares."""
    import torch

    tables: dict[int, nn.Parameter] = {}
    other_ids: set[int] = set()
    for part in module.modules():
        is_embedding = isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag)
        for parameter in part.parameters(recurse=False):
            if is_embedding:
                tables[id(parameter)] = parameter
            else:
                other_ids.add(id(parameter))
    return [table for key, table in tables.items() if key not in other_ids]


def head_by_type(module: nn.Module, task: Task) -> list[nn.Parameter]:
    """Weight and bias of the last ``nn.Linear`` with one output per vocabulary entry, on a language task."""
    import torch

    head: list[nn.Parameter] = []
    vocabulary = task.vocab_size if isinstance(task, LanguageTask) else None
    for part in module.modules():
        if isinstance(part, torch.nn.Linear) and part.out_features == vocabulary:
            head = list(part.parameters(recurse=False))
    return head


def is_table(parameter: Tensor, use: Use, is_embedding: bool) -> bool:
    """Whether the parameter is a lookup table: its rows are looked up, or added or concatenated to the data
    (learned positions).

    Not a lookup table: a table with at least half of its rows multiplied by activations (a sampled softmax), and a
    stack of matrices that tokens choose from (experts).
    """
    if use.multiplied or use.routed:
        return False
    if use.looked_up:
        return use.products < 0.5 and not (use.products > 0 and parameter.ndim > 2)
    if is_embedding:
        return True
    is_grid = sum(length > 1 for length in parameter.shape) > 1
    return use.placed and is_grid and not (use.other or use.by_weights)


def _has_vocabulary_size(parameter: Tensor, usage: ParameterUsage, task: Task) -> bool:
    """Whether a parameter has one row or entry per output of a language task."""
    return is_language_task(task) and usage.outputs_size in parameter.shape


def is_language_task(task: Task) -> bool:
    """Whether the task is to predict a token at every position of a sequence of tokens.

    True for a ``LanguageTask``, and for every task with integer targets of shape (batch, time) and integer inputs
    of two dimensions.
    """
    if isinstance(task, LanguageTask):
        return True
    batch = task.example(2)
    if isinstance(batch, Mapping):
        name = getattr(task, "targets", "labels")
        targets, inputs = batch.get(name), [value for key, value in batch.items() if key != name]
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        targets, inputs = batch[1], [batch[0]]
    else:
        targets, inputs = batch, [batch]
    return _is_token_ids(targets) and any(map(_is_token_ids, inputs))


def _is_token_ids(value: Any) -> bool:
    import torch

    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return value.ndim == 2 and value.shape[1] > 1 and not (value.is_floating_point() or value.is_complex())


def parameter_groups(model: PluginConfig[ModelSpec], module: nn.Module) -> list[ParameterGroup]:
    """The family's parameter groups; without these, one group of all parameters, with one learning rate.

    Raises PluginError if a group is not a ParameterGroup, or if a parameter is missing or in two groups.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if model.spec.parameter_groups is None:
        return [ParameterGroup(trained)]
    family_groups = model.call_all(model.spec.parameter_groups, module)
    for group in family_groups:
        if not isinstance(group, ParameterGroup):
            raise PluginError(
                f"model {model.name!r}: parameter_groups returned a {type(group).__name__}, not a ParameterGroup"
            )
    groups = [group for group in family_groups if group.parameters]
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    if sorted(grouped) != sorted(id(parameter) for parameter in trained):
        raise PluginError(
            f"model {model.name!r}: parameter_groups returned {len(grouped)} parameters, {len(set(grouped))} of "
            f"them distinct; each of the model's {len(trained)} parameters must be in exactly one group"
        )
    return groups
