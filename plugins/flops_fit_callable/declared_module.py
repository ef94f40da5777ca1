"""The module of the model family ``declared``. Imported by ``build`` only, so that discovery imports no torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.plugins import Task


class Declared(nn.Module):
    """As many parameters as declared, which on the meta device take no memory. Gives zeros of the task's shape."""

    def __init__(self, params: int, lookup_table_params: int, task: Task) -> None:
        super().__init__()
        self.task = task
        self.weight = nn.Parameter(torch.zeros(params - lookup_table_params))
        self.table = nn.Embedding(lookup_table_params, 1) if lookup_table_params else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Raises ConfigError with gradients: only a program of the user's can train this model."""
        if torch.is_grad_enabled():
            raise ConfigError(
                "model 'declared' is only numbers: use it with trainer 'command', or choose a family that can "
                "be trained, such as 'gpt'"
            )
        return torch.zeros(self._outputs_shape(inputs), device=inputs.device)

    def _outputs_shape(self, inputs: Tensor) -> tuple[int, ...]:
        if isinstance(self.task, LanguageTask):
            return (*inputs.shape, self.task.vocab_size)
        assert isinstance(self.task, SupervisedTask)
        return len(inputs), self.task.outputs_size
