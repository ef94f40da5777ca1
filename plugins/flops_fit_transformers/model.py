"""A decoder of transformers as a module that gives logits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from flops_fit_core import ConfigError, ParameterGroup, Task
from flops_fit_transformers import HFOptions, LadderOptions
from flops_fit_transformers.configuration import configure, quiet


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
        logits: Tensor = self.lm(input_ids=ids, **more).logits
        return logits


def build_decoder(options: HFOptions | LadderOptions, task: Task) -> Decoder:
    """Weights are drawn from torch's generator as the architecture draws them. Raises ConfigError."""
    config = configure(options, task)
    with quiet():
        try:
            lm = AutoModelForCausalLM.from_config(config)
        except (ValueError, AssertionError, AttributeError, TypeError) as error:
            raise ConfigError(f"model: transformers builds no {config.model_type!r} so: {error}") from error
    return Decoder(lm.train())


def groups_of(module: nn.Module) -> Iterator[ParameterGroup]:
    """Every matrix that is multiplied has the width of the residual stream, so that one learning rate holds for
    all, as for the family ``gpt``; experts' are stacked in three dimensions. The rest (tables, gains, biases,
    convolutions of single channels) has none and does not decay."""
    if not isinstance(module, Decoder):
        raise TypeError(f"these are the groups of a Decoder, not of a {type(module).__name__}")
    width = int(module.lm.config.hidden_size)
    kinds: dict[str, dict[int, nn.Parameter]] = defaultdict(dict)
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    head = module.lm.get_output_embeddings()
    matrices = {
        id(part.weight): part is not head
        for part in module.modules()
        if isinstance(part, nn.Linear | Conv1D) and id(part.weight) not in tables
    }
    for part in module.modules():
        if not isinstance(part, nn.Conv1d):
            matrices |= {id(one): True for one in part.parameters(recurse=False) if one.ndim == 3}
    for parameter in module.parameters():
        inner = matrices.get(id(parameter))
        kind = "rest" if inner is None else "hidden" if inner else "head"
        kinds[kind][id(parameter)] = parameter
    yield ParameterGroup(list(kinds["hidden"].values()), width=width, hidden=True)
    yield ParameterGroup(list(kinds["head"].values()), width=width, hidden=False)
    yield ParameterGroup(list(kinds["rest"].values()), decay=False, hidden=False)
