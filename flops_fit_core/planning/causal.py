"""The check that a language model does not use the tokens that it must predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit_core.data.causality import depends_on_later_inputs, fill_zero_weights
from flops_fit_core.data.custom_task import logits_of
from flops_fit_core.data.tasks import LanguageTask
from flops_fit_core.errors import PlanError
from flops_fit_core.plugins.protocols import Task

if TYPE_CHECKING:
    from torch import Tensor, nn


def check_causal(name: str, model: nn.Module | None, task: Task) -> None:
    """Raises PlanError for a language model with outputs that depend on later tokens.

    Args:
        name: Name of the model's family.
        model: A small model with values on the CPU. This function sets it to evaluation mode and fills its zero
            weights. None: no check.
        task: Task of the dataset.
    """
    if model is None or not isinstance(task, LanguageTask):
        return
    import torch

    model.eval()
    fill_zero_weights(model)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, task.vocab_size, (2, task.context + 1), generator=generator)

    def logits(ids: Tensor) -> object:
        return logits_of(task.outputs(model, torch.cat([ids, rows[:, -1:]], 1)))

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            sees_later = depends_on_later_inputs(logits, rows[:, :-1])
        except Exception:  # for example a GPU-only kernel; the fit of model and task has been checked before
            return
    if sees_later:
        raise PlanError(
            f"model {name!r} is not causal: its output at a position depends on later tokens, which it must "
            f"predict, so its loss would be meaningless. Use a causal attention mask (is_decoder = true in a "
            f"transformers configuration), or left padding for convolutions"
        )
