"""Model families that are the user's own: ``callable``, any function that makes a module, and ``declared``,
numbers of a model that something else builds. Dataset ``external``: data that something else reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, JsonValue, PositiveInt, model_validator

from flops_fit_callable.declared import DeclaredOptions, build_declared
from flops_fit_callable.external import External, ExternalOptions
from flops_fit_core.plugins import (
    Dataset,
    DatasetSpec,
    ImportPath,
    ModelSpec,
    Options,
    Runtime,
    Task,
    code_hash,
    hookimpl,
    own_parameter_groups,
)

if TYPE_CHECKING:
    from torch import nn


class CallableOptions(Options):
    """A function, or a class, that makes a module. What it asks for by one of these names it gets from the
    dataset: ``vocab_size`` and ``context`` of a text, ``input_shape`` and ``num_classes`` (``num_outputs`` where
    values are predicted) of samples, and ``task``, which has all of them."""

    import_path: Annotated[ImportPath, Runtime()]
    """``my_package.models:make`` or ``models.py:make``, looked for in the working directory first."""
    size_argument: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "width"
    """Name of the argument that gets ``size``."""
    size: PositiveInt = 64
    """Value of that argument. This is what scales; sizes that the planner finds are multiples of
    ``sweep.multiple_of``."""
    arguments: dict[str, JsonValue] = {}
    """Further arguments by name, the same at every size."""
    fingerprint: str = ""
    """What identifies the function in a run. Unset: a hash of its file and of your own files that it imports,
    without comments, docstrings and layout, so that an edit makes other runs. Written by hand, edits are yours to
    account for."""

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if "fingerprint" not in self.model_fields_set:
            found = code_hash(self.import_path)
            # What cannot be found is said when it is built; a study's results can be read without it.
            self.__dict__["fingerprint"] = f"{CODE}{found}" if found else ""
        return self


CODE = "code "
"""Before a fingerprint that was made from a file."""


def build(options: CallableOptions, task: Task) -> nn.Module:
    """What the function makes. Raises ConfigError, saying which, for one that cannot be found or called so."""
    from flops_fit_callable.calling import make

    return make(options, task)


def build_external(options: ExternalOptions, seed: int) -> Dataset:
    """A task, and no data."""
    return External(options)


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer ``callable`` and ``declared``."""
    yield ModelSpec(
        name="callable",
        options=CallableOptions,
        build=build,
        size="size",
        parameter_groups=own_parameter_groups,
    )
    yield ModelSpec(
        name="declared",
        options=DeclaredOptions,
        build=build_declared,
        size="params",
        flops_per_token=lambda options, task: options.flops_per_token,
    )


@hookimpl
def flops_fit_datasets() -> Iterable[DatasetSpec]:
    """Offer ``external``."""
    yield DatasetSpec(name="external", options=ExternalOptions, build=build_external, trainer="trainers/command")
