"""Model family ``mlp``: a multilayer perceptron, scaled by its width. Copy this plugin to write a family.

A family needs an options model, a function that builds the module, and a hook that returns both in a spec. The
other functions are optional: they make FLOPs exact (``counter = "model"``) and one learning rate good for all
widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask, SupervisedTask
from flops_fit_core.plugins import ModelSpec, Options, ParameterGroup, Task, hookimpl

if TYPE_CHECKING:
    from torch import nn


class MLPOptions(Options):
    """The sizes of inputs and outputs come from the dataset's task."""

    width: PositiveInt = 64
    """Units per hidden layer. This is what scales."""
    depth: PositiveInt = 2
    """Hidden layers."""
    window: PositiveInt = 8
    """For a language task: number of latest tokens that a prediction sees."""


def build_mlp(options: MLPOptions, task: Task) -> nn.Module:
    """Build hidden layers with ReLU for flattened inputs, or for the embeddings of the latest tokens.

    Outputs: (batch, outputs), or logits (batch, context, vocabulary) (Bengio et al. 2003, "A neural probabilistic
    language model", with ReLU instead of tanh and without direct connections).
    """
    from torch import nn

    from flops_fit_mlp.model import LatestTokens

    inputs, *hidden, outputs = layer_sizes(options, task)
    layers: list[nn.Module] = [nn.Flatten()]
    if isinstance(task, LanguageTask):
        layers = [LatestTokens(task.vocab_size, options.width, options.window)]
    for fan_in, fan_out in pairwise([inputs, *hidden]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))


def layer_sizes(options: MLPOptions, task: Task) -> list[int]:
    """Numbers of inputs, hidden units of each layer, and outputs. Raises ConfigError for other kinds of tasks."""
    hidden = [options.width] * options.depth
    if isinstance(task, LanguageTask):
        return [options.window * options.width, *hidden, task.vocab_size]
    if isinstance(task, SupervisedTask):
        return [math.prod(task.inputs), *hidden, task.outputs_size]
    raise ConfigError(
        f"model 'mlp' fits a LanguageTask or a SupervisedTask, and this dataset has a {type(task).__name__}: "
        f"choose another model"
    )


def flops_per_token(options: MLPOptions, task: Task) -> float:
    """Training FLOPs per token (sample): 3 x forward, 2 FLOPs per weight of every matrix.

    Biases, activations, the loss and the embedding lookup are not counted.
    """
    return 3.0 * sum(2 * fan_in * fan_out for fan_in, fan_out in pairwise(layer_sizes(options, task)))


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """Four groups: matrices between hidden layers; the output matrix; the input matrix; all other parameters."""
    from torch import nn

    first, *_ = module.children()
    linear = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    matrices = [layer.get_parameter("weight") for layer in linear]
    num_inputs = 1 if isinstance(first, nn.Flatten) else 0  # matrices with an input size that does not scale
    ids = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in ids]
    width = linear[-1].in_features
    yield ParameterGroup(matrices[num_inputs:-1], width=width, hidden=True)
    yield ParameterGroup(matrices[-1:], width=width, hidden=False)
    yield ParameterGroup(matrices[:num_inputs], hidden=False)
    yield ParameterGroup(rest, decay=False, hidden=False)


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer ``mlp``."""
    yield ModelSpec(
        name="mlp",
        options=MLPOptions,
        build=build_mlp,
        size="width",
        width=lambda options: options.width,
        flops_per_token=flops_per_token,
        parameter_groups=parameter_groups,
    )
