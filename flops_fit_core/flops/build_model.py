"""Builds models that share no weights with other models or with the user's data.

A user's model may contain existing objects, such as a global layer, or share memory with a tensor of the user
(``nn.Embedding.from_pretrained(TABLE)``). Training would change these.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flops_fit_core.config import PluginConfig
    from flops_fit_core.plugins.options import Options
    from flops_fit_core.plugins.protocols import Task
    from flops_fit_core.plugins.specs import ModelSpec


def build_model(
    model: PluginConfig[ModelSpec], options: Options, task: Task, *, in_training: bool = False
) -> nn.Module:
    """Build the family's model, with separate weights.

    With ``in_training``, errors of the family are raised unchanged, because a failed run records its traceback.
    Otherwise they become a PluginError that names the family.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    registered: dict[int, Any] = {}  # keeps parameters alive: Python reuses the id of a deleted object

    def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        registered[id(parameter)] = parameter

    handle = register_module_parameter_registration_hook(note)
    try:
        build = model.spec.build
        module = build(options, task) if in_training else model.call(build, options, task)
    finally:
        handle.remove()
    return with_separate_weights(module, registered) if hasattr(module, "parameters") else module


def with_separate_weights(module: nn.Module, registered: dict[int, Any]) -> nn.Module:
    """The module; a copy of it if it contains a parameter that is not in ``registered`` (id to parameter)."""
    import torch

    if any(id(parameter) not in registered for parameter in module.parameters()):
        with contextlib.suppress(Exception):  # locks, open files and other attributes cannot be copied
            return copy.deepcopy(module)
    if torch.empty(0).is_meta:  # get_default_device() of torch 2.7 fails after set_default_device(None)
        return module  # meta tensors are never written to
    tensors_by_storage: dict[int, list[Tensor]] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if _is_plain(tensor):
            tensors_by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    for tensors in tensors_by_storage.values():
        if len(tensors) == 1:  # tensors that share memory with each other are tied
            tensors[0].data = tensors[0].data.clone()
    return module


def _is_plain(tensor: Tensor) -> bool:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.numel() > 0
