"""Convolutions (iOS15 and iOS17 conv)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from validation.mil.ops import blocked, pointwise
from validation.mil.ops.padding import pad_amounts, padded
from validation.mil.ops.spatial import kernel_for
from validation.mil.registry import Ints, Tensor, op

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _conv_blocked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """`conv` in blocks of 32 products; the bias is added last, in fp16."""
    if pointwise.is_pointwise(x, weight, bias, strides, pad_type, pad, dilations, groups):
        if (few := pointwise.few_blocked(x, weight, bias)) is not None:
            return few
    total = None
    for channels, part in blocked.weight_blocks(weight):
        values = blocked.grouped_channels(x, channels, groups)
        block = conv(values, part, None, strides, pad_type, pad, dilations, groups).half()
        total = block if total is None else total + block
    if total is None:
        raise ValueError(f"a convolution without input channels: weight {list(weight.shape)}")
    result: Tensor = total if bias is None else total + bias.half().reshape(-1, *[1] * (x.ndim - 2))
    return result


def _conv_in_pieces(x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any) -> Tensor:
    """`conv` that gives fp16: a 1x1 kernel over an fp16 picture is one product of its positions with the weight."""
    if x.dtype is torch.float16 and pointwise.is_pointwise(x, weight, bias, *geometry):
        for product in (pointwise.few, pointwise.many):
            if (result := product(x, weight, bias)) is not None:
                return result
    whole: Tensor = conv(x.float(), weight.float(), None if bias is None else bias.float(), *geometry)
    return whole.half()


@op("conv", fresh=True, blocked=_conv_blocked, pieced=_conv_in_pieces, packing=pointwise.CONV)
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
    kernel = kernel_for(axes, _CONVS)
    if axes == 2:
        # Twice to eight times faster for depthwise kernels on this CPU, and what follows keeps the layout.
        x = x.contiguous(memory_format=torch.channels_last)
    if all(before == after for before, after in amounts):
        symmetric = tuple(before for before, _ in amounts)
        return kernel(x, weight, bias, strides, symmetric, dilations, groups)
    return kernel(padded(x, amounts), weight, bias, strides, 0, dilations, groups)


def _fitted(x: Tensor, before: Ints, sizes: Ints) -> Tensor:
    """x from `before` on, cut or filled with zeros to `sizes`, over its last axes."""
    amounts = []
    for axis, (first, size) in enumerate(zip(before, sizes, strict=True), start=2):
        amounts += [(-first, size - (x.shape[axis] - first))]
    return F.pad(x, [amount for pair in reversed(amounts) for amount in pair])


_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@op("conv_transpose", fresh=True)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """iOS15, iOS17 conv.conv_transpose: weight (C_in, C_out / groups, kernel...); the padding is cut off the result

    "same" gives size * stride; output_shape decides where it is there, what it cuts is split like TensorFlow's.
    """
    axes = x.ndim - 2
    strides = strides or (1,) * axes
    whole = kernel_for(axes, _TRANSPOSED)(x, weight, None, strides, 0, 0, groups, dilations or (1,) * axes)
    pad = pad or (0,) * 2 * axes
    full = whole.shape[2:]
    if output_shape is not None:
        sizes = tuple(output_shape[2:])
    elif pad_type in ("same", "same_lower"):
        sizes = tuple(size * stride for size, stride in zip(x.shape[2:], strides, strict=True))
    elif pad_type == "custom":
        sizes = tuple(full[i] - pad[2 * i] - pad[2 * i + 1] for i in range(axes))
    else:
        sizes = tuple(full)
    if pad_type in ("same", "same_lower"):
        before = tuple(max(size - want, 0) // 2 for size, want in zip(full, sizes, strict=True))
    else:
        before = pad[0::2] if pad_type == "custom" else (0,) * axes
    result = _fitted(whole, before, sizes)
    return result if bias is None else result + bias.reshape(-1, *[1] * axes)
