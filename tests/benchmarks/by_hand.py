"""What a hand-written loop for the family gpt has to know: its parameter groups and a cosine schedule."""

from __future__ import annotations

import math

LR, BASE_WIDTH, FINAL = 0.008, 64, 0.1


def parameter_groups(model):
    """Matrices at LR * BASE_WIDTH / width, everything else at LR: as the default recipe has it."""
    matrices = [p for block in model.blocks for p in block.parameters() if p.ndim == 2] + [model.head.weight]
    others = [model.embedding.weight] + [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices, "lr": LR * BASE_WIDTH / model.width}, {"params": others, "lr": LR}]


def multiplier(run, step):
    """Of the peak learning rates: a linear warmup, then half a cosine down to FINAL."""
    warmup = run.schedule.options["warmup_tokens"] / run.tokens_per_step
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / (run.steps - 1 - warmup)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * done))
