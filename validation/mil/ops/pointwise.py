"""1x1 convolutions: the product of every position with one matrix. A channels-first decoder consists of them.

What they take depends on the number of positions:
- few (a step of a decoder, or a chunk of a prompt) go the way of `linear`, a large constant weight in the layout of
  `packed`: torch's convolution of one position is slow, and on another number of threads it gives other bytes;
- a large picture goes in pieces that stay in the cache;
- in between torch's convolution is the fastest by up to two times, and `few` and `many` leave it to `conv`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from validation.mil.ops import blocked, packed, pieces
from validation.mil.ops.linear import linear
from validation.mil.registry import Ints, Packing, Tensor
from validation.mil.values import TensorType

FEW = 128  # positions: two chunks of 64


def is_pointwise(
    x: Tensor | TensorType,
    weight: Tensor | TensorType,
    bias: Tensor | TensorType | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> bool:
    """Whether each output depends on the one input position at its place; False too for what `conv` will refuse."""
    axes = len(x.shape) - 2
    ones, zeros = (1,) * axes, (0,) * 2 * axes
    fits = axes > 0 and groups == 1 and x.shape[1] and tuple(weight.shape[1:]) == (x.shape[1], *ones)
    fits = fits and (bias is None or tuple(bias.shape) == tuple(weight.shape[:1]))
    plain = pad_type in ("valid", "same", "same_lower") or (pad_type == "custom" and pad == zeros)
    return bool(fits) and plain and strides in (None, ones) and len(dilations or ones) == axes


def _positions(x: TensorType) -> int | None:
    lengths = [length for axis, length in enumerate(x.shape) if axis != 1]
    return None if None in lengths else prod(length or 0 for length in lengths)


def few(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Returns x fp16 (B, C_in, spatial...) times weight (C_out, C_in, 1...): fp16; None where it has more than few."""
    if x.numel() > FEW * x.shape[1]:
        return None
    positions = x.movedim(1, -1)
    rows = positions.reshape(-1, x.shape[1])
    padded = rows if len(rows) == 1 else pieces.whole_eights(rows)
    result: Tensor = linear(padded, weight.flatten(1), bias)[: len(rows)]
    return result.view(*positions.shape[:-1], -1).movedim(-1, 1)


def many(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The same for large pictures (B, C_in, H, W); None for smaller ones."""
    if x.ndim != 4 or x.shape[2] * x.shape[3] < pieces.ROWS:
        return None
    pixels = x.permute(0, 2, 3, 1)  # channels-last pictures lie in memory like this
    wide = None if bias is None else bias.float()
    result: Tensor = pieces.rows_times_weight(pixels.reshape(-1, x.shape[1]), weight.float().flatten(1), wide)
    return result.reshape(*pixels.shape[:3], weight.shape[0]).permute(0, 3, 1, 2)


def few_blocked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`few` with its products summed in blocks, see `blocked.linear`."""
    if x.numel() > FEW * x.shape[1]:
        return None
    return blocked.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def _packed(x: Tensor, layout: packed.PackedLinear) -> Tensor:
    if x.numel() == layout.inputs:
        return packed.linear(x.reshape(-1), layout).view(-1, layout.outputs, *x.shape[2:])
    return packed.linear(x.movedim(1, -1), layout).movedim(-1, 1)


def _pack(weight: Tensor, bias: Tensor | None = None) -> packed.PackedLinear:
    return packed.PackedLinear(weight.flatten(1), bias)


def _suits(x: TensorType, weight: TensorType, bias: TensorType | None = None, **geometry: Any) -> bool:
    """A large weight, and no picture large enough for its raising for every call to cost little."""
    positions = _positions(x)
    small = positions is not None and positions < pieces.ROWS
    return small and packed.is_large(*weight.shape[:2]) and is_pointwise(x, weight, bias, **geometry)


def _pays(x: TensorType) -> bool:
    return 0 < (_positions(x) or 0) <= FEW and packed.is_here()


CONV = Packing(_suits, _pays, _pack, _packed)
