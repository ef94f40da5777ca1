"""Builds models whose weights are their own: what is done to one reaches neither the next nor the caller's data.

A model may be made of what is there already: a global layer, or a table of embeddings
(``nn.Embedding.from_pretrained(TABLE)``), whose memory its parameter shares.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.config import Chosen
    from flops_fit_core.plugins.protocols import Task
    from flops_fit_core.plugins.specs import ModelSpec, Options


def build_model(model: Chosen[ModelSpec], options: Options, task: Task, *, in_training: bool = False) -> nn.Module:
    """The family's model, with weights of its own.

    ``in_training``: the family's errors are raised as they are, since a failed run keeps its traceback. Otherwise
    they become a PluginError that names the family.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    made: dict[int, Any] = {}  # holds what was made, so that no id comes again

    def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        made[id(parameter)] = parameter

    handle = register_module_parameter_registration_hook(note)
    try:
        build = model.spec.build
        module = build(options, task) if in_training else model.call(build, options, task)
    finally:
        handle.remove()
    return with_own_weights(module, made) if hasattr(module, "parameters") else module


def with_own_weights(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """The module, or a copy of it where it holds a parameter that is not among those just ``made``."""
    import torch

    if any(id(parameter) not in made for parameter in module.parameters()):
        with contextlib.suppress(Exception):  # it may hold what cannot be copied, as a lock or a file
            return copy.deepcopy(module)
    if torch.get_default_device().type == "meta":
        return module  # nothing is written to it
    users: dict[int, list[Tensor]] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if _is_plain(tensor):
            users.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    for first, *others in users.values():
        if not others:  # tensors that share memory with each other are tied
            first.data = first.data.clone()
    return module


def _is_plain(tensor: Tensor) -> bool:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.numel() > 0
