"""Job -> results: what a worker does. The only room that imports torch when it is imported."""

from flops_fit_core.training.context import WorkerContext
from flops_fit_core.training.estimate import estimate_seconds
from flops_fit_core.training.evaluate import HeldOut, evaluate, further_losses
from flops_fit_core.training.loop import TorchTrainer
from flops_fit_core.training.modes import eval_mode, train_mode
from flops_fit_core.training.randomness import random_state, set_random_state
from flops_fit_core.training.together import Processes
from flops_fit_core.training.worker import work

__all__ = [
    "HeldOut",
    "Processes",
    "TorchTrainer",
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
