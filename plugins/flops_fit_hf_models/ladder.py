"""The configuration of a ladder with the nearest number of parameters."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from flops_fit_core.data import LanguageTask
from flops_fit_hf_models import LadderOptions
from flops_fit_hf_models.model import build_decoder, groups_of

VOCABULARY = 32_000
"""Vocabulary of configurations without ``vocab_size``."""


def nearest(options: LadderOptions, target: int) -> LadderOptions:
    """The same options with the configuration of the nearest N on a log scale. N counts active matmul
    parameters."""
    values = options.model_dump(exclude_unset=True)
    numbers = range(1, len(options.configs) + 1)
    sizes = [LadderOptions.model_validate({**values, "config_number": number}) for number in numbers]
    return min(sizes, key=lambda size: abs(math.log(_parameters(size.model_dump_json()) / target)))


@lru_cache(maxsize=256)
def _parameters(options_json: str) -> float:
    options = LadderOptions.model_validate_json(options_json)
    vocabulary: Any = options.config.get("vocab_size") or VOCABULARY
    with torch.device("meta"):
        decoder = build_decoder(options, LanguageTask(int(vocabulary), context=1024))
    active = sum(group.active * sum(param.numel() for param in group.parameters) for group in groups_of(decoder))
    table = decoder.lm.get_input_embeddings().weight
    head = decoder.lm.get_output_embeddings()
    return active - (table.numel() if head is None or head.weight is not table else 0)
