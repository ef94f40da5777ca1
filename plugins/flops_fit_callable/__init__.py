"""Model family ``callable``: a module from a user's function. Model family ``declared``: the numbers of a model
that another program builds. Dataset ``external``: data that another program reads."""

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
    """A function or class that returns a module. Parameters with these names receive values from the dataset:
    ``vocab_size`` and ``context`` for text, ``input_shape`` and ``num_classes`` (``num_outputs`` for regression)
    for samples, and ``task`` for the complete task."""

    import_path: Annotated[ImportPath, Runtime()]
    """``my_package.models:make`` or ``models.py:make``. The working directory is searched first."""
    size_argument: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "width"
    """Name of the argument that receives ``size``."""
    size: PositiveInt = 64
    """Value of this argument. This is what scales. Sizes that the planner chooses are multiples of
    ``sweep.multiple_of``."""
    arguments: dict[str, JsonValue] = {}
    """Other arguments by name, the same at every size."""
    fingerprint: str = ""
    """Identifies the function in a run. Unset: a hash of its file and of your files that it imports, without
    comments, docstrings and layout, so that runs after an edit have other ids. If you set it, change it when you
    change the code."""

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if "fingerprint" not in self.model_fields_set:
            digest = code_hash(self.import_path)
            # A missing file is an error only when a model is built: a study's results can be read without it.
            self.__dict__["fingerprint"] = f"{CODE}{digest}" if digest else ""
        return self


CODE = "code "
"""Prefix of a fingerprint that is a hash of files."""


def build(options: CallableOptions, task: Task) -> nn.Module:
    """Call the function. Raises ConfigError if it cannot be imported or called."""
    from flops_fit_callable.calling import make

    return make(options, task)


def build_external(options: ExternalOptions, seed: int) -> Dataset:
    """A task without data."""
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
