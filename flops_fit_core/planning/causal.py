"""A language model must not see the tokens that it is to predict."""

from __future__ import annotations

from flops_fit_core.causality import depends_on_later_inputs, fill_zero_weights
from flops_fit_core.config import Experiment
from flops_fit_core.contracts import Task
from flops_fit_core.custom_task import logits_of
from flops_fit_core.errors import PlanError
from flops_fit_core.measure import LARGEST_TRIED, Measured
from flops_fit_core.tasks import LanguageTask


def check_causal(experiment: Experiment, measured: Measured, task: Task) -> None:
    """Raises PlanError for a language model whose output at a position depends on later tokens.

    Models of more than ``LARGEST_TRIED`` parameters are not tried, nor those that cannot be on the CPU.
    """
    if not isinstance(task, LanguageTask) or measured.parameters.total > LARGEST_TRIED:
        return
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        model = experiment.model.calling("build", measured.options, task).eval()
        fill_zero_weights(model)
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, task.vocab_size, (2, task.context + 1), generator=generator)

        def logits(ids: torch.Tensor) -> object:
            return logits_of(task.outputs(model, torch.cat([ids, rows[:, -1:]], 1)))

        try:
            sees_later = depends_on_later_inputs(logits, rows[:, :-1])
        except Exception:  # a kernel for GPUs only, say; whether it fits the task has been checked before
            return
    if sees_later:
        raise PlanError(
            f"model {experiment.model.name!r} is not causal: its output at a position depends on later tokens, "
            "which it is to predict, so its loss would mean nothing. Give it a causal attention mask (is_decoder "
            "= true, in configurations of transformers), or padding on the left of a convolution"
        )
