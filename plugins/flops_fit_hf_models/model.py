"""A decoder of transformers as a module that returns logits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from flops_fit_core import ConfigError
from flops_fit_core.plugins import ParameterGroup, Task
from flops_fit_hf_models import HFOptions, LadderOptions
from flops_fit_hf_models.configuration import TOP_K, configure, quiet
from flops_fit_hf_models.fan_in import scale_by_fan_in
from flops_fit_hf_models.transfer import require_fan_in

KINDS = ("hidden", "head", "rest")


class Decoder(nn.Module):
    """Input: ids (batch, time). Output: logits (batch, time, V). All parameters belong to ``lm``."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, ids: Tensor) -> Tensor:
        arguments = {}
        if ids.is_meta and hasattr(self.lm.config, "num_attention_heads"):
            # Without a mask, transformers reads the values of positions to detect packed texts.
            time = ids.shape[1]
            mask = torch.ones(len(ids), 1, time, time, dtype=torch.bool, device="meta").tril()
            arguments["attention_mask"] = mask
        if ids.is_meta:
            _use_batched_experts(self.lm)
        logits: Tensor = self.lm(input_ids=ids, **arguments).logits
        return logits


def _use_batched_experts(lm: Any) -> None:
    """Use one product per token and expert. It does the same work as the default, which reads values to find the
    tokens of an expert."""
    switch = getattr(lm, "set_experts_implementation", None)  # since transformers 5
    if switch is not None and any(type(part).__name__.endswith("Experts") for part in lm.modules()):
        with quiet():
            switch("batched_mm")


def build_decoder(options: HFOptions | LadderOptions, task: Task) -> Decoder:
    """Build a decoder with weights from torch's generator, as the architecture draws them, scaled if the options
    require it. Raises ConfigError."""
    config = configure(options, task)
    if options.init == "fan_in":
        require_fan_in(options)
    with quiet():
        try:
            lm = AutoModelForCausalLM.from_config(config)
        except (ValueError, AssertionError, AttributeError, TypeError) as error:
            raise ConfigError(f"model: transformers could not build {config.model_type!r}: {error}") from error
    decoder = Decoder(lm.train())
    if options.init == "fan_in":
        scale_by_fan_in(lm, kinds_of(decoder))
    return decoder


def groups_of(module: nn.Module) -> Iterator[ParameterGroup]:
    """Groups of matrices, with the width of the residual stream, so that all have the same learning rate, as for
    the family ``gpt``. Matrices of experts are stacked in three dimensions, and a token uses a share of them. The
    last group (tables, gains, biases, convolutions of single channels) has no width and does not decay."""
    if not isinstance(module, Decoder):
        raise TypeError(f"expected a Decoder, got a {type(module).__name__}")
    width = int(module.lm.config.hidden_size)
    kinds = kinds_of(module)
    active = _active(module.lm)
    grouped: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for param in module.parameters():
        if param.requires_grad:  # some architectures correct routers without gradients
            grouped[kinds.get(id(param), "rest"), active.get(id(param), 1.0)].append(param)
    for (kind, share), params in sorted(grouped.items(), key=lambda item: (KINDS.index(item[0][0]), item[0][1])):
        is_matrix = kind != "rest"
        yield ParameterGroup(
            params, width=width if is_matrix else None, decay=is_matrix, hidden=kind == "hidden", active=share
        )


def kinds_of(module: Decoder) -> dict[int, str]:
    """Id of a multiplied parameter -> ``hidden``, or ``head`` if its outputs are not channels."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    head = module.lm.get_output_embeddings()
    kinds: dict[int, str] = {}
    for part in module.modules():
        if isinstance(part, nn.Linear | Conv1D) and id(part.weight) not in tables:
            kinds[id(part.weight)] = "head" if part is head else "hidden"
        elif not isinstance(part, nn.Conv1d):
            params = list(part.parameters(recurse=False))
            kinds |= {id(param): "hidden" for param in params if param.ndim == 3 and min(param.shape) > 1}
            if type(part).__name__.endswith("Router"):
                kinds |= {id(param): "head" for param in params if param.ndim == 2}
    return kinds


def _active(lm: Any) -> dict[int, float]:
    """Id of an expert's parameter -> share of the experts that a token uses. Raises ConfigError if the
    configuration does not have the number of experts per token."""
    shares: dict[int, float] = {}
    for name, part in lm.named_modules():
        class_name = type(part).__name__
        if isinstance(part, nn.ModuleList):  # before transformers 5
            if name.endswith(".experts"):
                count = _experts_per_token(lm.config, name)
                shares |= {id(param): count / len(part) for param in part.parameters() if len(part) > count}
        elif class_name.endswith(("Experts", "ExpertsMLP")) and "Shared" not in class_name:  # stacked
            count = _experts_per_token(lm.config, name)
            shares |= {id(param): count / len(param) for param in part.parameters() if len(param) > count}
    return shares


def _experts_per_token(config: Any, name: str) -> int:
    """Number of a module's experts that a token uses."""
    count = next((value for field in TOP_K if (value := getattr(config, field, None))), None)
    layer = re.search(r"\.(\d+)\.", name)
    if isinstance(count, list) and layer is not None:
        count = count[int(layer[1])]
    if not isinstance(count, int):
        raise ConfigError(
            f"model: {config.model_type!r} has experts, but its configuration has no number of experts per token: "
            f"write num_experts_per_tok in model.config, or choose another architecture"
        )
    return count
