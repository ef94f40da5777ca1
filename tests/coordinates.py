"""The coordinate check of muP (Yang et al. 2022, Tensor Programs V, appendix D.1), for any model family.

A few steps of training at several widths: with one learning rate for all of them, what every part of the model
puts out, and the change of it, is of one size at every width.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit_core.config import Experiment
from flops_fit_core.data import SupervisedTask
from flops_fit_core.planning import make_plan
from flops_fit_core.plugins import Dataset, DatasetSpec, hookimpl
from flops_fit_core.plugins.registry import Registry
from flops_fit_core.records import RunSpec, SweepPlan
from flops_fit_core.training.context import WorkerContext

STEPS = 5
GROWN = 1.5
"""The most that an activation may grow by from one width to a larger one."""
SHRUNK = 2.5
"""And shrink: the starting logits fall as the root of the width, and are a part of those after a few steps."""
LOGITS = "logits"


class Images(Dataset):
    """Random images in 10 classes."""

    task = SupervisedTask(inputs=(3, 4, 4), outputs_size=10)
    fingerprint = "random images"

    @hookimpl
    def flops_fit_datasets(self):
        yield DatasetSpec(name="random", build=lambda options, seed: self)

    def batches(self, batch_size, start=0):
        generator = torch.Generator().manual_seed(start)
        while True:
            images = torch.randn(batch_size, *self.task.inputs, generator=generator)
            yield images, torch.randint(10, (batch_size,), generator=generator)

    def eval_batches(self, tokens, batch_size):
        return []


LAYERS = {"num_hidden_layers": 2}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
ENCODER_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LATENT = {
    "num_attention_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "gpt2": NO_DROPOUT,
    "gpt2, untied": {**NO_DROPOUT, "tie_word_embeddings": False},
    "qwen3": {},
    "qwen3, tied": {"tie_word_embeddings": True},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gpt_neox": {},
    "granite": {},
    "mistral": {},
    "olmo": {},
    "olmo2": {},
    "opt": {"dropout": 0.0},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "bert": ENCODER_DROPOUT,
    "electra": ENCODER_DROPOUT,
    "gptj": NO_DROPOUT,
    "mamba": {},
    "mamba2": {"state_size": 8, "n_groups": 1, "chunk_size": 16},
    "rwkv": {},
    "aria_text": {"moe_num_experts": 8, "moe_topk": 2},
    "cohere2_moe": {"num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, "n_routed_experts": 8, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
        "vocab_size_per_layer_input": 8,
    },
    "glm4_moe": {"n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "granitemoe": {},
    "granitemoeshared": {},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": [2, 5]},
    "inkling_text": {"n_routed_experts": 8, "num_experts_per_tok": 1, "n_shared_experts": 2},
    "llama4_text": {"num_local_experts": 4},
    "mellum": {"num_experts": 8, "num_experts_per_tok": 2},
    "mixtral": {},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2},
}
"""Fields of the configuration of every architecture of transformers that documents and tests name."""


def hf_model(name: str, **options: Any) -> dict[str, Any]:
    """The model's table in an experiment, of one of ``CONFIGS``."""
    config = {**LAYERS, **CONFIGS[name]}
    return {"name": "hf", "architecture": name.split(",")[0], "head_dim": 16, "config": config, **options}


def coordinates(experiment: Experiment, registry: Registry, *, seeds: int = 2) -> dict[str, list[float]]:
    """Root mean square of the output of every part of the model, and of its change by the steps, by its name.

    Values are means over the seeds, one for each size of the experiment, the smallest first. A part that does
    not put out numbers at every size is left out.
    """
    plan = make_plan(experiment)
    runs = sorted(plan.runs, key=lambda run: run.size)
    sizes = [_of_run(run, plan, registry, seeds) for run in runs]
    return {name: [size[name] for size in sizes] for name in sizes[0] if all(name in size for size in sizes)}


def _of_run(run: RunSpec, plan: SweepPlan, registry: Registry, seeds: int) -> dict[str, float]:
    total: dict[str, float] = {}
    for seed in range(seeds):
        seeded = run.model_copy(update={"seed": seed})
        (job,) = plan.model_copy(update={"runs": (seeded,)}).jobs({seeded.id})
        parts = WorkerContext(job, registry, Path()).build(seeded)
        task, batch = parts.dataset.task, next(parts.dataset.batches(16))
        before = outputs(parts.model, task, batch)
        for _ in range(STEPS):
            loss, count = task.loss(task.outputs(parts.model, batch), batch)
            (loss / count).backward()
            parts.optimizer.step()
            parts.optimizer.zero_grad()
        after = outputs(parts.model, task, batch)
        for name, value in after.items():
            total[name] = total.get(name, 0.0) + _root_mean_square(value) / seeds
            if name in before and before[name].shape == value.shape:
                change = f"change of {name}"
                total[change] = total.get(change, 0.0) + _root_mean_square(value - before[name]) / seeds
    return total


def outputs(model: nn.Module, task: Any, batch: Any) -> dict[str, Tensor]:
    """The first tensor of real numbers that each part of the model puts out, by name, and the logits."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point():
            outputs[name] = first

    hooks = [
        part.register_forward_hook(lambda part, inputs, output, name=name: keep(name, output))
        for name, part in model.named_modules()
        if name
    ]
    with torch.no_grad():
        outputs[LOGITS] = task.outputs(model, batch)
    for hook in hooks:
        hook.remove()
    return outputs


def growth(values: list[float]) -> float:
    """The most that a value is of an earlier one; 1 where all are zero."""
    return max(later / earlier if earlier else 1.0 + later for earlier, later in combinations(values, 2))


def _root_mean_square(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())
