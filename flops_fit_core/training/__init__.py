"""Training: turns a job into results, in a worker process.

``loop.py`` shows how a run is trained. This is the only room whose modules import torch at module level. The names
below are loaded on first use, so that the driver, which never trains, does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit_core.training.context import WorkerContext
    from flops_fit_core.training.distributed import TorchDistributedContext
    from flops_fit_core.training.estimate import estimate_seconds
    from flops_fit_core.training.evaluation import EvalResult, evaluate, further_losses
    from flops_fit_core.training.loop import TorchTrainer
    from flops_fit_core.training.optimizer_modes import eval_mode, train_mode
    from flops_fit_core.training.options import TrainOptions
    from flops_fit_core.training.rng import random_state, set_random_state
    from flops_fit_core.training.worker import work

_LAZY = {
    "EvalResult": "evaluation",
    "TorchDistributedContext": "distributed",
    "TorchTrainer": "loop",
    "TrainOptions": "options",
    "WorkerContext": "context",
    "estimate_seconds": "estimate",
    "eval_mode": "optimizer_modes",
    "evaluate": "evaluation",
    "further_losses": "evaluation",
    "random_state": "rng",
    "set_random_state": "rng",
    "train_mode": "optimizer_modes",
    "work": "worker",
}

__all__ = [
    "EvalResult",
    "TorchDistributedContext",
    "TorchTrainer",
    "TrainOptions",
    "WorkerContext",
    "estimate_seconds",
    "eval_mode",
    "evaluate",
    "further_losses",
    "random_state",
    "set_random_state",
    "train_mode",
    "work",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"flops_fit_core.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
