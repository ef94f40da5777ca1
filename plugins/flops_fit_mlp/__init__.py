"""Model family ``mlp``: a multilayer perceptron whose width scales. The plugin to copy for a family of your own.

A family is an options model, a function that builds, and one line that offers both. The other functions are
optional: they make FLOPs exact (``counter = "model"``) and one learning rate right for all widths.
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
    """What goes in and out is the dataset's task's business."""

    width: PositiveInt = 64
    """Units of a hidden layer. This is what scales."""
    depth: PositiveInt = 2
    """Hidden layers."""
    window: PositiveInt = 8
    """On a language task, how many of the latest tokens a prediction sees."""


def build_mlp(options: MLPOptions, task: Task) -> nn.Module:
    """Flattened inputs, or the embeddings of the latest tokens, through hidden layers with ReLU.

    Outputs: (batch, outputs), or logits of shape (batch, context, vocabulary) (Bengio et al. 2003, "A neural
    probabilistic language model", with ReLU for tanh and without direct connections).
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
    """Inputs, hidden units of each layer, outputs. Raises ConfigError for a task of another kind."""
    hidden = [options.width] * options.depth
    if isinstance(task, LanguageTask):
        return [options.window * options.width, *hidden, task.vocab_size]
    if isinstance(task, SupervisedTask):
        return [math.prod(task.inputs), *hidden, task.outputs_size]
    raise ConfigError(
        f"model 'mlp' fits a LanguageTask or a SupervisedTask, and this dataset poses a {type(task).__name__}: "
        f"choose another model"
    )


def flops_per_token(options: MLPOptions, task: Task) -> float:
    """Training FLOPs a token (sample): 3 x forward, 2 FLOPs a weight of every matrix.

    Biases, activations, the loss and the embedding lookup are not counted.
    """
    return 3.0 * sum(2 * fan_in * fan_out for fan_in, fan_out in pairwise(layer_sizes(options, task)))


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """Matrices between hidden layers; the one to the outputs; the one that reads a sample; the rest."""
    from torch import nn

    first, *_ = module.children()
    linear = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    matrices = [layer.get_parameter("weight") for layer in linear]
    fixed = 1 if isinstance(first, nn.Flatten) else 0
    ids = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in ids]
    width = linear[-1].in_features
    yield ParameterGroup(matrices[fixed:-1], width=width, hidden=True)
    yield ParameterGroup(matrices[-1:], width=width, hidden=False)
    yield ParameterGroup(matrices[:fixed], hidden=False)
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
