"""Normalisations (iOS15 and iOS17 normalization).

Those that add up have a blocked form, in which each step is rounded to fp16, see `blocked`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from validation.mil.ops import blocked
from validation.mil.registry import Ints, Tensor, op


def _on_channels(values: Tensor | None, x: Tensor, neutral: float) -> Tensor:
    """values (C,) shaped to act on axis 1 of x."""
    if values is None:
        return torch.full((), neutral, dtype=x.dtype)
    return values.reshape(-1, *[1] * (x.ndim - 2))


@op("batch_norm", fresh=True)
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """iOS15, iOS17 normalization.batch_norm: with stored statistics, per channel (axis 1)"""
    scale = _on_channels(gamma, x, 1.0) * torch.rsqrt(_on_channels(variance, x, 1.0) + epsilon)
    return (x - _on_channels(mean, x, 0.0)) * scale + _on_channels(beta, x, 0.0)


def _layer_norm_blocked(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    over = sorted(axis % x.ndim for axis in (axes if axes is not None else range(x.ndim)))
    shape = [x.shape[axis] if axis in over else 1 for axis in range(x.ndim)]
    result = blocked.standardised(x, over, epsilon)
    if gamma is not None:
        result = blocked.half(result * gamma.reshape(shape))
    return result if beta is None else result + beta.reshape(shape)


@op("layer_norm", fresh=True, blocked=_layer_norm_blocked)
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """iOS15, iOS17 normalization.layer_norm: over `axes` (all by default); gamma and beta have those axes' shape"""
    if axes is not None and len(axes) == 1:
        (axis,) = axes
        return F.layer_norm(x.movedim(axis, -1), (x.shape[axis],), gamma, beta, epsilon).movedim(-1, axis)
    over = sorted(axis % x.ndim for axis in (axes if axes is not None else range(x.ndim)))
    kept = [axis for axis in range(x.ndim) if axis not in over]
    # torch's kernel takes the last axes; elsewhere they are moved there, which copies nothing in the usual layouts.
    order = [*kept, *over]
    last = x.permute(order)
    normed = F.layer_norm(last, last.shape[len(kept) :], gamma, beta, epsilon)
    return normed.permute([order.index(axis) for axis in range(x.ndim)])


def _instance_norm_blocked(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    result = blocked.standardised(x, range(2, x.ndim), epsilon)
    return blocked.half(result * _on_channels(gamma, x, 1.0)) + _on_channels(beta, x, 0.0)


@op("instance_norm", fresh=True, blocked=_instance_norm_blocked)
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """iOS15, iOS17 normalization.instance_norm: over the spatial axes of each channel"""
    variance, mean = torch.var_mean(x, dim=list(range(2, x.ndim)), keepdim=True, correction=0)
    result = (x - mean) * torch.rsqrt(variance + epsilon)
    return result * _on_channels(gamma, x, 1.0) + _on_channels(beta, x, 0.0)


def _l2_norm_blocked(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    squares = blocked.total(x * x, range(max(x.ndim - 3, 0), x.ndim), keep_dims=True)
    return x * blocked.half(torch.rsqrt(blocked.half(squares + epsilon)))


@op("l2_norm", fresh=True, blocked=_l2_norm_blocked)
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """iOS15 normalization.l2_norm: x / sqrt(sum(x ** 2) + epsilon) over the last three axes"""
    over = list(range(max(x.ndim - 3, 0), x.ndim))
    return x * torch.rsqrt((x * x).sum(dim=over, keepdim=True) + epsilon)


def _neighbours(x: Tensor, size: int) -> Tensor:
    """The squares of each channel's neighbours: x's shape and an axis of `size`."""
    axis = 0 if x.ndim == 3 else 1
    around = [0, 0] * (x.ndim - 1 - axis) + [size // 2, (size - 1) // 2]
    return F.pad(x * x, around).unfold(axis, size, 1)


def _local_response_norm_blocked(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    total = blocked.total(_neighbours(x, size), [-1])
    return x / torch.pow(k + alpha * total / size, beta)


@op("local_response_norm", fresh=True, blocked=_local_response_norm_blocked)
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """iOS15 normalization.local_response_norm: across `size` neighbouring channels, on axis 1 of images (B, C, H, W)

    Of rank 3 the documentation says (B, C, D), but coremltools' test, whose answers come from a Mac, has (C, H, W).
    """
    total = _neighbours(x, size).sum(dim=-1)
    return x / torch.pow(k + alpha * total / size, beta)
