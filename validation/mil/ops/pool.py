"""Pools (iOS15 pool): average, L2 and maximum over 1, 2 or 3 spatial axes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

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


@op("avg_pool", fresh=True)
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
    total = pool(padded(x, amounts), kernel_sizes, strides)
    plain = _amounts(x, kernel_sizes, strides, pad_type, pad, False)
    if exclude_padding_from_average:
        counted = padded(torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype), amounts)
    else:
        counted = padded(torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype), plain, 1.0)
        counted = padded(counted, [(0, all_ - some) for (_, all_), (_, some) in zip(amounts, plain, strict=True)])
    return total / pool(counted, kernel_sizes, strides)


@op("l2_pool", fresh=True)
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
