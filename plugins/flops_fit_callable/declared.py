"""Model family ``declared``: only the numbers of a model, which another program builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from flops_fit_core.plugins import Options, Task

if TYPE_CHECKING:
    from torch import nn


class DeclaredOptions(Options):
    """The numbers of a model that another program builds and trains (trainer ``command``). Write a table for each
    size in ``sweep.sizes``. The numbers are not checked."""

    params: PositiveInt = 1_000_000
    """All parameters of the model. This is what scales."""
    lookup_table_params: NonNegativeInt = 0
    """Of these, parameters in lookup tables (an input embedding that is not also the output head, learned
    positions), which the FLOPs counters leave out of N."""
    flops_per_token: Annotated[float, Field(gt=0)] | None = None
    """Training FLOPs per token, forward and backward, for ``counter = "model"``. Unset: use the counter
    ``chinchilla``, which counts 6 per parameter outside lookup tables."""
    arguments: dict[str, JsonValue] = {}
    """Arguments for the program: ``{ depth = 6 }`` is ``{model.arguments.depth}`` in its command."""

    @model_validator(mode="after")
    def _is_more_than_tables(self) -> Self:
        if self.lookup_table_params >= self.params:
            raise ValueError(
                f"lookup_table_params = {self.lookup_table_params} must be less than params = {self.params}"
            )
        return self


def build_declared(options: DeclaredOptions, task: Task) -> nn.Module:
    """A module with the declared number of parameters. It returns zeros of the right shape and cannot be
    trained."""
    from flops_fit_callable.declared_module import Declared

    return Declared(options.params, options.lookup_table_params, task)
