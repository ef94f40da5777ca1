"""FLOPs of torch's matrix products and convolutions, and the products that have no formula."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NO_FORMULA = frozenset(
    f"aten::{name}"
    for name in (
        *("_trilinear", "_cdist_forward", "_euclidean_dist"),
        *("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"),
    )
)
"""Matrix products of torch's own for which it has no formula; attention and others are told by their names."""
_MATRIX_PRODUCT = re.compile(r"(::|_)(b|add|badd|addb)?mm(_|\.|$)")
"""``aten::_sparse_mm``, ``aten::addbmm``, ``aten::_int_mm``."""


def product_formulas() -> Mapping[Any, Callable[..., int]]:
    """Torch's, those that somebody has registered, and two that torch 2.13 lacks.

    Torch counts the weight's gradient of a grouped convolution as if there were one group: a Mamba's convolutions
    come out as many times too large as they have channels. It counts the grouped product of a mixture of experts
    as nothing.
    """
    from torch import ops
    from torch.utils.flop_counter import FlopCounterMode

    known = dict(FlopCounterMode(display=False).flop_registry)
    backward = ops.aten.convolution_backward
    if known[backward].__module__ == "torch.utils.flop_counter":
        known[backward] = _convolution_backward
    if hasattr(ops.aten, "_grouped_mm"):
        known.setdefault(ops.aten._grouped_mm, _grouped_mm)
    return known


def is_product(func: Any) -> bool:
    """Whether an operation without a formula may multiply: attention, a matrix product, an operation of a user."""
    name = func.name()
    own = func.namespace not in ("aten", "prim", "prims")
    return own or "attention" in name or name in NO_FORMULA or _MATRIX_PRODUCT.search(name) is not None


def grouped_result(left: Any, right: Any, offsets: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The shape of a grouped product. Torch's own for the meta device takes bfloat16 alone."""
    offsets = kwargs.get("offs", offsets)
    rows = left.shape[-2:-1]
    groups = left.shape[:-2] if right.ndim > 2 else ()
    if left.ndim == right.ndim == 2:
        groups = offsets.shape
    return left.new_empty((*groups, *rows, right.shape[-1]))


def _grouped_mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """Rows (or columns) are split into groups, and each is multiplied by its group's matrix alone."""
    products: int = 2 * left.numel() * right.shape[-1]
    return products // left.shape[0] if left.ndim > right.ndim else products


def _convolution_backward(
    outer: Any,
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **kwargs: Any,
) -> int:
    """Each of the two gradients has the products of the forward pass: 2 x batch x weights x positions."""
    positions = math.prod((inputs if transposed else outer).shape[2:])
    products: int = 2 * outer.shape[0] * weight.numel() * positions
    return products * sum(wanted[:2])  # of the inputs and of the weight, not of the bias
