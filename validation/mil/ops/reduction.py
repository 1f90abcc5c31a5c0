"""Reductions (iOS15 and iOS17 reduction); `axes` defaults to all of them."""

from __future__ import annotations

import torch

from validation.mil.registry import Ints, Tensor, op


def _axes(x: Tensor, axes: Ints | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]


@op("reduce_argmax", fresh=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """iOS15, iOS17 reduction.reduce_argmax: the first of equal values"""
    return torch.argmax(x, dim=axis, keepdim=keep_dims)


@op("reduce_argmin", fresh=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """iOS15, iOS17 reduction.reduce_argmin: the first of equal values"""
    return torch.argmin(x, dim=axis, keepdim=keep_dims)


@op("reduce_l1_norm", fresh=True)
def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_l1_norm"""
    return x.abs().sum(dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_l2_norm", fresh=True)
def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_l2_norm"""
    return torch.sqrt((x * x).sum(dim=_axes(x, axes), keepdim=keep_dims).float())


@op("reduce_log_sum", fresh=True)
def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_log_sum"""
    return torch.log(x.sum(dim=_axes(x, axes), keepdim=keep_dims).float())


@op("reduce_log_sum_exp", fresh=True)
def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_log_sum_exp: the largest value is taken out first"""
    return torch.logsumexp(x.float(), dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_max", fresh=True)
def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_max"""
    return torch.amax(x, dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_min", fresh=True)
def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_min"""
    return torch.amin(x, dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_mean", fresh=True)
def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_mean"""
    values = x if x.is_floating_point() else x.float()
    return values.mean(dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_prod")
def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_prod"""
    result = x
    for axis in sorted(_axes(x, axes), reverse=True):
        result = result.prod(dim=axis, keepdim=keep_dims)
    return result


@op("reduce_sum", fresh=True)
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_sum"""
    return x.sum(dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_sum_square", fresh=True)
def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_sum_square"""
    return (x * x).sum(dim=_axes(x, axes), keepdim=keep_dims)
