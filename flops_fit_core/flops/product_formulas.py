"""FLOPs of torch's matrix products and convolutions, and products without a formula."""

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
"""Matrix products in torch without a formula. Attention and sparse products are recognised by their names."""
_MATRIX_PRODUCT = re.compile(r"(::|_)(b|add|badd|addb)?mm(_|\.|$)")
"""``aten::_sparse_mm``, ``aten::addbmm``, ``aten::_int_mm``."""


def product_formulas() -> Mapping[Any, Callable[..., int]]:
    """FLOPs formulas of torch, formulas registered by the user, and two that torch 2.13 lacks.

    For the weight gradient of a grouped convolution, torch ignores the groups: a Mamba convolution with c
    channels is counted c times too large. For the grouped product of a mixture of experts, torch counts no FLOPs.
    """
    from torch import ops
    from torch.utils.flop_counter import FlopCounterMode

    formulas = dict(FlopCounterMode(display=False).flop_registry)
    backward = ops.aten.convolution_backward
    if formulas[backward].__module__ == "torch.utils.flop_counter":
        formulas[backward] = _convolution_backward
    if hasattr(ops.aten, "_grouped_mm"):
        formulas.setdefault(ops.aten._grouped_mm, _grouped_mm)
    return formulas


def is_product(func: Any) -> bool:
    """Whether an operation without a formula may multiply: attention, a matrix product, a custom operation."""
    name = func.name()
    is_custom = func.namespace not in ("aten", "prim", "prims")
    return is_custom or "attention" in name or name in NO_FORMULA or _MATRIX_PRODUCT.search(name) is not None


def grouped_result(left: Any, right: Any, offsets: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The shape of a grouped product. Torch's kernel for the meta device accepts bfloat16 only."""
    offsets = kwargs.get("offs", offsets)
    rows = left.shape[-2:-1]
    groups = left.shape[:-2] if right.ndim > 2 else ()
    if left.ndim == right.ndim == 2:
        groups = offsets.shape
    return left.new_empty((*groups, *rows, right.shape[-1]))


def _grouped_mm(left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """Rows (or columns) are split into groups; each is multiplied by the matrix of its group only."""
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
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    """Each of the two gradients costs as much as the forward pass: 2 x batch x weights x positions."""
    positions = math.prod((inputs if transposed else outer).shape[2:])
    products: int = 2 * outer.shape[0] * weight.numel() * positions
    return products * sum(output_mask[:2])  # gradients of inputs and weight; the bias has no products
