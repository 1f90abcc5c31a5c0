"""The padding rules that convolutions and pools share.

`pad_amounts` gives (before, after) per spatial axis for pad_type valid, custom, same and same_lower. Source:
coremltools' converters/mil/mil/ops/defs/_utils.py (spatial_dimensions_out_shape) and the conv op's documentation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F

from validation.mil.registry import Ints, Tensor


def pad_amounts(
    pad_type: str, pad: Ints, sizes: Sequence[int], kernel: Sequence[int], strides: Ints, dilations: Ints
) -> list[tuple[int, int]]:
    """(before, after) zeros per spatial axis; ValueError for an unknown pad_type."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        return list(zip(pad[0::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}")
    amounts = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (width - 1) * dilation + 1
        total = max(((size + stride - 1) // stride - 1) * stride + reach - size, 0)
        small, large = total // 2, total - total // 2
        amounts.append((small, large) if pad_type == "same" else (large, small))
    return amounts


def padded(x: Tensor, amounts: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x with `amounts` of `value` around its last axes; x itself where there is nothing to add."""
    if not any(before or after for before, after in amounts):
        return x
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return F.pad(x, flat, value=value)
