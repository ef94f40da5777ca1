"""The configuration of a list that has about as many parameters as are asked for."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from flops_fit_core import LanguageTask
from flops_fit_transformers import LadderOptions
from flops_fit_transformers.configuration import configure, quiet

VOCABULARY = 32_000
"""Of configurations that say none."""


def nearest(options: LadderOptions, target: int) -> LadderOptions:
    """The same options at the rung whose N is nearest on a log scale."""
    given = options.model_dump(exclude_unset=True)
    rungs = [LadderOptions.model_validate({**given, "rung": one + 1}) for one in range(len(options.configs))]
    return min(rungs, key=lambda rung: abs(math.log(_parameters(rung.model_dump_json()) / target)))


@lru_cache(maxsize=256)
def _parameters(rung: str) -> int:
    options = LadderOptions.model_validate_json(rung)
    vocabulary: Any = options.config.get("vocab_size") or VOCABULARY
    with torch.device("meta"), quiet():
        lm = AutoModelForCausalLM.from_config(configure(options, LanguageTask(int(vocabulary), context=1024)))
    return sum(parameter.numel() for parameter in lm.parameters())
