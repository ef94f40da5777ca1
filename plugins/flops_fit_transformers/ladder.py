"""The configuration of a list that has about as many parameters as are asked for."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from flops_fit_core.data import LanguageTask
from flops_fit_transformers import LadderOptions
from flops_fit_transformers.model import build_decoder, groups_of

VOCABULARY = 32_000
"""Of configurations that say none."""


def nearest(options: LadderOptions, target: int) -> LadderOptions:
    """The same options at the rung whose N is nearest on a log scale: what a token is multiplied with."""
    given = options.model_dump(exclude_unset=True)
    rungs = [
        LadderOptions.model_validate({**given, "config_number": one + 1}) for one in range(len(options.configs))
    ]
    return min(rungs, key=lambda rung: abs(math.log(_parameters(rung.model_dump_json()) / target)))


@lru_cache(maxsize=256)
def _parameters(rung: str) -> float:
    options = LadderOptions.model_validate_json(rung)
    vocabulary: Any = options.config.get("vocab_size") or VOCABULARY
    with torch.device("meta"):
        decoder = build_decoder(options, LanguageTask(int(vocabulary), context=1024))
    used = sum(group.active * sum(one.numel() for one in group.parameters) for group in groups_of(decoder))
    table = decoder.lm.get_input_embeddings().weight
    head = decoder.lm.get_output_embeddings()
    return used - (table.numel() if head is None or head.weight is not table else 0)
