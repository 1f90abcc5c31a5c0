"""Pools (iOS15 pool): average, L2 and maximum over 1, 2 or 3 spatial axes; the first two have blocked forms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from validation.mil.ops import blocked
from validation.mil.ops.padding import pad_amounts, padded
from validation.mil.ops.spatial import kernel_for
from validation.mil.registry import Ints, Tensor, op

_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _amounts(
    x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> list[tuple[int, int]]:
    """(before, after) per spatial axis; with ceil_mode `after` grows until the last window is whole."""
    axes = len(kernel)
    amounts = pad_amounts(pad_type, pad or (0,) * 2 * axes, x.shape[2:], kernel, strides, (1,) * axes)
    if not ceil_mode:
        return amounts
    grown = []
    for (before, after), size, width, stride in zip(amounts, x.shape[2:], kernel, strides, strict=True):
        count = math.ceil((size + before + after - width) / stride) + 1
        if (count - 1) * stride >= size + before and before + after > 0:
            count -= 1
        grown.append((before, max((count - 1) * stride + width - size - before, after)))
    return grown


@op("max_pool", fresh=True)
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """iOS15 pool.max_pool: padding never wins"""
    strides = strides or (1,) * len(kernel_sizes)
    amounts = _amounts(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return kernel_for(len(kernel_sizes), _MAX_POOLS)(padded(x, amounts, lowest), kernel_sizes, strides)


def _windows(x: Tensor, kernel: Ints, strides: Ints) -> Tensor:
    """The values under each window of x (B, C, spatial...): (B, C, windows..., values)."""
    result = x
    for axis, (width, stride) in enumerate(zip(kernel, strides, strict=True), start=2):
        result = result.unfold(axis, width, stride)
    return result.flatten(2 + len(kernel))


def _counted(
    x: Tensor, kernel_sizes: Ints, strides: Ints, pad_type: str, pad: Ints | None, exclude: bool, ceil_mode: bool
) -> Tensor:
    """A padded picture (1, 1, spatial...) of what counts for an average: ones, and zeros for what does not."""
    amounts = _amounts(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if exclude:
        return padded(ones, amounts)
    plain = _amounts(x, kernel_sizes, strides, pad_type, pad, False)
    counted = padded(ones, plain, 1.0)
    return padded(counted, [(0, all_ - some) for (_, all_), (_, some) in zip(amounts, plain, strict=True)])


def _avg_pool_blocked(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """`avg_pool`: the sum in blocks, then divided."""
    strides = strides or (1,) * len(kernel_sizes)
    amounts = _amounts(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    counted = _counted(x, kernel_sizes, strides, pad_type, pad, exclude_padding_from_average, ceil_mode)
    sums = blocked.total(_windows(padded(x, amounts), kernel_sizes, strides), [-1])
    return sums / _windows(counted, kernel_sizes, strides).sum(-1)


@op("avg_pool", fresh=True, blocked=_avg_pool_blocked)
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """iOS15 pool.avg_pool: padded zeros count, except what ceil_mode alone added, unless they are excluded"""
    strides = strides or (1,) * len(kernel_sizes)
    amounts = _amounts(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = kernel_for(len(kernel_sizes), _AVERAGE_POOLS)
    counted = _counted(x, kernel_sizes, strides, pad_type, pad, exclude_padding_from_average, ceil_mode)
    return pool(padded(x, amounts), kernel_sizes, strides) / pool(counted, kernel_sizes, strides)


def _l2_pool_blocked(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """`l2_pool`: the squares added up in blocks."""
    strides = strides or (1,) * len(kernel_sizes)
    amounts = _amounts(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    return torch.sqrt(blocked.total(_windows(padded(x * x, amounts), kernel_sizes, strides), [-1]))


@op("l2_pool", fresh=True, blocked=_l2_pool_blocked)
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """iOS15 pool.l2_pool: the root of the sum of squares in each window"""
    strides = strides or (1,) * len(kernel_sizes)
    amounts = _amounts(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = kernel_for(len(kernel_sizes), _AVERAGE_POOLS)(padded(x * x, amounts), kernel_sizes, strides)
    return torch.sqrt(mean * math.prod(kernel_sizes))
