"""Model family ``rnn``: a stack of gated recurrent layers. Its width scales."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import ModelSpec, Options, ParameterGroup, Task, hookimpl

if TYPE_CHECKING:
    from torch import nn

GATES = {"gru": 3, "lstm": 4}


class RNNOptions(Options):
    """Options of ``rnn``. Vocabulary and context length come from the dataset's task."""

    width: PositiveInt = 64
    """Channels per layer: the size option."""
    depth: PositiveInt = 2
    """Number of layers."""
    cell: Literal["gru", "lstm"] = "gru"
    """Gated recurrent units (Cho et al. 2014), or long short-term memory (Hochreiter & Schmidhuber 1997)."""


def build_rnn(options: RNNOptions, task: Task) -> nn.Module:
    """Return a module from ids of shape (batch, context) to logits of shape (batch, context, vocabulary)."""
    from flops_fit_rnn.model import RNN

    return RNN(_language(task).vocab_size, options.width, options.depth, options.cell)


def flops_per_token(options: RNNOptions, task: Task) -> float:
    """Training FLOPs per token, 3 x forward. A multiply-add counts as two.

    For each gate, a layer multiplies its input and its state by one matrix each: 2 gates (2 d^2) FLOPs. The head
    has 2 d V. Elementwise products of the gates are not counted.
    """
    d = options.width
    layer = 2 * GATES[options.cell] * 2 * d * d
    return 3.0 * (options.depth * layer + 2 * d * _language(task).vocab_size)


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """First the matrices with ``width`` input channels, then the embedding and the biases."""
    from flops_fit_rnn.model import RNN

    if not isinstance(module, RNN):
        raise TypeError(f"expected a module of class RNN, got {type(module).__name__}")
    matrices = [parameter for parameter in module.layers.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in module.layers.parameters() if parameter.ndim == 1]
    yield ParameterGroup(matrices, width=module.width)
    yield ParameterGroup([module.head.weight], width=module.width)
    yield ParameterGroup([module.embedding.weight, *biases], decay=False)


def _language(task: Task) -> LanguageTask:
    if not isinstance(task, LanguageTask):
        raise ConfigError(
            f"model 'rnn' predicts the next token, but the task of this dataset is a {type(task).__name__}: "
            f"choose a text dataset"
        )
    return task


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer the family ``rnn``."""
    yield ModelSpec(
        name="rnn",
        options=RNNOptions,
        build=build_rnn,
        size="width",
        width=lambda options: options.width,
        flops_per_token=flops_per_token,
        parameter_groups=parameter_groups,
    )
