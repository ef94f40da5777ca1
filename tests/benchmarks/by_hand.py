"""Parameter groups and a cosine schedule for a hand-written training loop of the family gpt."""

from __future__ import annotations

import math

LR, BASE_WIDTH, FINAL = 0.008, 64, 0.1


def parameter_groups(model):
    """Matrices at LR * BASE_WIDTH / width, all other parameters at LR, as in the default recipe."""
    matrices = [p for block in model.blocks for p in block.parameters() if p.ndim == 2] + [model.head.weight]
    vectors = [model.embedding.weight] + [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices, "lr": LR * BASE_WIDTH / model.width}, {"params": vectors, "lr": LR}]


def multiplier(run, step):
    """Factor on the peak learning rate: a linear warmup, then half a cosine down to FINAL."""
    warmup = run.schedule.options["warmup_tokens"] / run.tokens_per_step
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (run.steps - 1 - warmup)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * progress))
