"""Convolutions (iOS15 and iOS17 conv)."""

from __future__ import annotations

import torch.nn.functional as F

from validation.mil.ops.padding import pad_amounts, padded
from validation.mil.registry import Ints, Tensor, op

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """iOS15, iOS17 conv.conv: x (B, C_in, spatial...), weight (C_out, C_in / groups, kernel...)"""
    axes = x.ndim - 2
    strides = strides or (1,) * axes
    dilations = dilations or (1,) * axes
    amounts = pad_amounts(pad_type, pad or (0,) * 2 * axes, x.shape[2:], weight.shape[2:], strides, dilations)
    if all(before == after for before, after in amounts):
        symmetric = tuple(before for before, _ in amounts)
        return _CONVS[axes](x, weight, bias, strides, symmetric, dilations, groups)
    return _CONVS[axes](padded(x, amounts), weight, bias, strides, 0, dilations, groups)
