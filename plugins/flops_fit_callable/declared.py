"""A model of which only numbers are known here, since a program of the user's builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from flops_fit_core.plugins import Options, Task

if TYPE_CHECKING:
    from torch import nn


class DeclaredOptions(Options):
    """What a plan needs to know of a model that another program builds and trains (trainer ``command``): write a
    table for each size in ``sweep.sizes``. Nothing checks these numbers."""

    params: PositiveInt = 1_000_000
    """All parameters of the model. This is what scales."""
    lookup_table_params: NonNegativeInt = 0
    """Of these, in tables that are only looked up (an input embedding that is not the output head too, learned
    positions), which the FLOPs counters leave out of N."""
    flops_per_token: Annotated[float, Field(gt=0)] | None = None
    """Training FLOPs a token, forward and backward, for ``counter = "model"``. Unset: the counter ``chinchilla``
    takes 6 a parameter that is no lookup."""
    arguments: dict[str, JsonValue] = {}
    """What the program needs to build it: ``{ depth = 6 }`` is ``{model.arguments.depth}`` in its command."""

    @model_validator(mode="after")
    def _is_more_than_tables(self) -> Self:
        if self.lookup_table_params >= self.params:
            raise ValueError(
                f"lookup_table_params = {self.lookup_table_params} leaves nothing of params = {self.params}"
            )
        return self


def build_declared(options: DeclaredOptions, task: Task) -> nn.Module:
    """A module with the declared parameters. It gives zeros of the right shape, and refuses to be trained."""
    from flops_fit_callable.declared_module import Declared

    return Declared(options.params, options.lookup_table_params, task)
