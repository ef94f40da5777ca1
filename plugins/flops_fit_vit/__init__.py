"""Model family ``vit``: a vision transformer (Dosovitskiy et al. 2020) for images, scaled by its width."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from flops_fit_core import ConfigError
from flops_fit_core.data import SupervisedTask
from flops_fit_core.plugins import ModelSpec, Options, ParameterGroup, Task, head_ladders, hookimpl

if TYPE_CHECKING:
    from torch import nn


class ViTOptions(Options):
    """The images' shape and the number of classes come from the dataset's task."""

    width: PositiveInt = 64
    """d: channels of the residual stream. This is what scales."""
    depth: PositiveInt = 4
    """Number of blocks."""
    head_dim: PositiveInt = 16
    """Channels per attention head. There are ``width / head_dim`` heads, rounded down to a number that divides the
    width evenly. Automatic sizes are multiples of it, so that all heads have the same size."""
    mlp_ratio: PositiveInt = 4
    """Hidden units of a block's feed-forward part, divided by the width."""
    patch: PositiveInt = 4
    """Side of the square patches in pixels. Must divide the images' sides."""
    pool: Literal["mean", "class"] = "mean"
    """Input of the head: the mean over the patches, or an additional class token that passes through all
    blocks."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm without biases, before attention, feed-forward part and head."""

    @property
    def heads(self) -> int:
        """The largest number of heads with at least ``head_dim`` channels each that divides the width."""
        largest = max(1, self.width // self.head_dim)
        return next(n for n in range(largest, 0, -1) if self.width % n == 0)


def build_vit(options: ViTOptions, task: Task) -> nn.Module:
    """Build a ViT: images (batch, channels, height, width), or (batch, height, width) for one channel -> outputs
    (batch, classes)."""
    from flops_fit_vit.model import ViT

    channels, height, width = image_shape(options, task)
    return ViT(
        channels=channels,
        grid=(height // options.patch, width // options.patch),
        patch=options.patch,
        outputs=_supervised(task).outputs_size,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        hidden=options.mlp_ratio * options.width,
        class_token=options.pool == "class",
        layer_norm=options.norm == "layer",
    )


def flops_per_image(options: ViTOptions, task: Task) -> float:
    """Training FLOPs per sample: every matrix product and the attention of all tokens to all, forward and
    backward.

    With width d, depth L, feed-forward ratio 4, P patches of q numbers, T tokens (P, or P + 1 with a class token)
    and K classes this is ``3 (L (24 T d^2 + 4 T^2 d) + 2 d K) + 2 (2 P q d)``. A multiply-add is two FLOPs.
    Backward is twice forward, but equal to forward for the patch embedding, because the gradient of the image is
    not computed. Softmax, norms, activations and the pooling are not counted. This equals torch's count of a step.
    """
    channels, height, width = image_shape(options, task)
    patches = (height // options.patch) * (width // options.patch)
    tokens = patches + (options.pool == "class")
    d = options.width
    embedding = 2 * patches * channels * options.patch**2 * d
    block = 2 * (4 + 2 * options.mlp_ratio) * tokens * d * d + 4 * tokens**2 * d
    return 3.0 * (options.depth * block + 2 * d * _supervised(task).outputs_size) + 2.0 * embedding


def parameter_groups(module: nn.Module) -> Iterable[ParameterGroup]:
    """Four groups: the blocks' matrices; the output head; the patch embedding; tables and gains."""
    from flops_fit_vit.model import ViT

    if not isinstance(module, ViT):
        raise TypeError(f"expected a ViT, got a {type(module).__name__}")
    matrices = [p for p in module.blocks.parameters() if p.ndim == 2]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    yield ParameterGroup(matrices, width=module.width, hidden=True)
    yield ParameterGroup(list(module.head.parameters()), width=module.width, hidden=False)
    yield ParameterGroup(list(module.embedding.parameters()), hidden=False)
    yield ParameterGroup([*module.tables(), *vectors], decay=False, hidden=False)


def image_shape(options: ViTOptions, task: Task) -> tuple[int, int, int]:
    """Channels, height and width. Raises ConfigError for a task without images or a patch that does not fit."""
    shape = _supervised(task).inputs
    if len(shape) not in (2, 3):
        raise ConfigError(
            f"model 'vit' needs images of shape (channels, height, width) or (height, width), and this dataset's "
            f"inputs have shape {shape}: choose another model, such as mlp"
        )
    channels, height, width = (1, *shape) if len(shape) == 2 else shape
    if height % options.patch or width % options.patch:
        fitting = [side for side in range(1, min(height, width) + 1) if not (height % side or width % side)]
        raise ConfigError(
            f"model 'vit': patches of {options.patch} x {options.patch} do not tile images of {height} x {width}; "
            f"model.patch may be {', '.join(map(str, fitting))}"
        )
    return channels, height, width


def _supervised(task: Task) -> SupervisedTask:
    if not isinstance(task, SupervisedTask):
        raise ConfigError(
            f"model 'vit' predicts one target per image, and this dataset has a {type(task).__name__}: choose a "
            f"dataset of images, or another model"
        )
    return task


@hookimpl
def flops_fit_models() -> Iterable[ModelSpec]:
    """Offer ``vit``."""
    yield ModelSpec(
        name="vit",
        options=ViTOptions,
        build=build_vit,
        size="width",
        multiple_of=4,
        ladders=head_ladders,
        heads=lambda options: (options.heads, options.width // options.heads),
        width=lambda options: options.width,
        flops_per_token=flops_per_image,
        parameter_groups=parameter_groups,
        optimizer="optim/adamw",
    )
