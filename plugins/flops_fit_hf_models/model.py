"""A decoder of transformers as a module that gives logits."""

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
    """Input: ids (batch, time). Output: logits (batch, time, V). Its parameters are those of ``lm``."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, ids: Tensor) -> Tensor:
        more = {}
        if ids.is_meta and hasattr(self.lm.config, "num_attention_heads"):
            # Left to itself, transformers reads the positions' values to find packed texts; a finished mask is
            # taken as it is.
            time = ids.shape[1]
            more["attention_mask"] = torch.ones(len(ids), 1, time, time, dtype=torch.bool, device="meta").tril()
        if ids.is_meta:
            _follow_experts(self.lm)
        logits: Tensor = self.lm(input_ids=ids, **more).logits
        return logits


def _follow_experts(lm: Any) -> None:
    """By default an expert's tokens are looked up, and without values there are none. One product for each token
    and each of its experts does the same work without looking."""
    switch = getattr(lm, "set_experts_implementation", None)  # since transformers 5
    if switch is not None and any(type(part).__name__.endswith("Experts") for part in lm.modules()):
        with quiet():
            switch("batched_mm")


def build_decoder(options: HFOptions | LadderOptions, task: Task) -> Decoder:
    """Weights are drawn from torch's generator as the architecture draws them, and then scaled where the options
    ask for that. Raises ConfigError."""
    config = configure(options, task)
    if options.init == "fan_in":
        require_fan_in(options)
    with quiet():
        try:
            lm = AutoModelForCausalLM.from_config(config)
        except (ValueError, AssertionError, AttributeError, TypeError) as error:
            raise ConfigError(f"model: transformers builds no {config.model_type!r} so: {error}") from error
    decoder = Decoder(lm.train())
    if options.init == "fan_in":
        scale_by_fan_in(lm, kinds_of(decoder))
    return decoder


def groups_of(module: nn.Module) -> Iterator[ParameterGroup]:
    """Every matrix that is multiplied has the width of the residual stream, so that one learning rate holds for
    all, as for the family ``gpt``; experts' are stacked in three dimensions. The rest (tables, gains, biases,
    convolutions of single channels) has none and does not decay. Of experts a token uses its share."""
    if not isinstance(module, Decoder):
        raise TypeError(f"these are the groups of a Decoder, not of a {type(module).__name__}")
    width = int(module.lm.config.hidden_size)
    kinds = kinds_of(module)
    active = _active(module.lm)
    grouped: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in filter(lambda one: one.requires_grad, module.parameters()):  # some correct routers by hand
        grouped[kinds.get(id(parameter), "rest"), active.get(id(parameter), 1.0)].append(parameter)
    for (kind, share), found in sorted(grouped.items(), key=lambda item: (KINDS.index(item[0][0]), item[0][1])):
        matrices = kind != "rest"
        yield ParameterGroup(
            found, width=width if matrices else None, decay=matrices, hidden=kind == "hidden", active=share
        )


def kinds_of(module: Decoder) -> dict[int, str]:
    """``hidden`` or, with outputs that are no channels, ``head``: of the parameters that are multiplied, by id."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    head = module.lm.get_output_embeddings()
    kinds: dict[int, str] = {}
    for part in module.modules():
        if isinstance(part, nn.Linear | Conv1D) and id(part.weight) not in tables:
            kinds[id(part.weight)] = "head" if part is head else "hidden"
        elif not isinstance(part, nn.Conv1d):
            own = list(part.parameters(recurse=False))
            kinds |= {id(one): "hidden" for one in own if one.ndim == 3 and min(one.shape) > 1}
            if type(part).__name__.endswith("Router"):
                kinds |= {id(one): "head" for one in own if one.ndim == 2}
    return kinds


def _active(lm: Any) -> dict[int, float]:
    """The share of its experts to which a token is sent, for their parameters by id. Raises ConfigError where the
    configuration does not say how many these are."""
    shares: dict[int, float] = {}
    for name, part in lm.named_modules():
        called = type(part).__name__
        if isinstance(part, nn.ModuleList):  # before transformers 5
            if name.endswith(".experts"):
                chosen = _chosen(lm.config, name)
                shares |= {id(one): chosen / len(part) for one in part.parameters() if len(part) > chosen}
        elif called.endswith(("Experts", "ExpertsMLP")) and "Shared" not in called:  # stacked by number
            chosen = _chosen(lm.config, name)
            shares |= {id(one): chosen / len(one) for one in part.parameters() if len(one) > chosen}
    return shares


def _chosen(config: Any, name: str) -> int:
    """To how many of a module's experts a token is sent."""
    found = next((value for one in TOP_K if (value := getattr(config, one, None))), None)
    layer = re.search(r"\.(\d+)\.", name)
    if isinstance(found, list) and layer is not None:
        found = found[int(layer[1])]
    if not isinstance(found, int):
        raise ConfigError(
            f"model: {config.model_type!r} has experts, and its configuration does not say to how many of them a "
            f"token is sent: write num_experts_per_tok in model.config, or choose another architecture"
        )
    return found
