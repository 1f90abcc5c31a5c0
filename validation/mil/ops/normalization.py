"""Normalisations (iOS15 and iOS17 normalization)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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


@op("layer_norm", fresh=True)
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """iOS15, iOS17 normalization.layer_norm: over `axes` (all by default); gamma and beta have those axes' shape"""
    if axes in ((-1,), (x.ndim - 1,)):
        return F.layer_norm(x, x.shape[-1:], gamma, beta, epsilon)
    over = sorted(axis % x.ndim for axis in (axes if axes is not None else range(x.ndim)))
    kept = [axis for axis in range(x.ndim) if axis not in over]
    # torch's kernel takes the last axes; elsewhere they are moved there, which copies nothing in the usual layouts.
    order = [*kept, *over]
    last = x.permute(order)
    normed = F.layer_norm(last, last.shape[len(kept) :], gamma, beta, epsilon)
    return normed.permute([order.index(axis) for axis in range(x.ndim)])


@op("instance_norm", fresh=True)
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """iOS15, iOS17 normalization.instance_norm: over the spatial axes of each channel"""
    variance, mean = torch.var_mean(x, dim=list(range(2, x.ndim)), keepdim=True, correction=0)
    result = (x - mean) * torch.rsqrt(variance + epsilon)
    return result * _on_channels(gamma, x, 1.0) + _on_channels(beta, x, 0.0)


@op("l2_norm", fresh=True)
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """iOS15 normalization.l2_norm: x / sqrt(sum(x ** 2) + epsilon) over the last three axes"""
    over = list(range(max(x.ndim - 3, 0), x.ndim))
    return x * torch.rsqrt((x * x).sum(dim=over, keepdim=True) + epsilon)


@op("local_response_norm", fresh=True)
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """iOS15 normalization.local_response_norm: across `size` neighbouring channels, on axis 1 of images (B, C, H, W)

    Of rank 3 the documentation says (B, C, D), but coremltools' test, whose answers come from a Mac, has (C, H, W).
    """
    axis = 0 if x.ndim == 3 else 1
    around = [0, 0] * (x.ndim - 1 - axis) + [size // 2, (size - 1) // 2]
    total = torch.nn.functional.pad(x * x, around).unfold(axis, size, 1).sum(dim=-1)
    return x / torch.pow(k + alpha * total / size, beta)
