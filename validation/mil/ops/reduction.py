"""Reductions (iOS15 and iOS17 reduction); `axes` defaults to all of them.

Those that find a value are NATIVE: they round nothing. Those that add have a blocked form, see `blocked`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from validation.mil.ops import blocked
from validation.mil.registry import Ints, Kind, Tensor, op


def _axes(x: Tensor, axes: Ints | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]


def _blocked(
    of: Callable[[Tensor], Tensor] = lambda x: x, then: Callable[[Tensor], Tensor] = lambda total: total
) -> Callable[..., Tensor]:
    """A reduction that adds up of(x) in blocks and gives then(total)."""

    def reduce(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return then(blocked.total(of(x), _axes(x, axes), keep_dims))

    return reduce


def _mean_blocked(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    return blocked.mean(x, _axes(x, axes), keep_dims)


def _log_sum_exp_blocked(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """`reduce_log_sum_exp` with its powers, of at most 1, rounded to fp16 and added up in blocks."""
    over = _axes(x, axes)
    largest = torch.amax(x, dim=over, keepdim=True)
    log = torch.log(blocked.total(torch.exp(x - largest), over, keep_dims))
    return log + (largest if keep_dims else largest.reshape(log.shape))


@op("reduce_argmax", fresh=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """iOS15, iOS17 reduction.reduce_argmax: the first of equal values"""
    return torch.argmax(x, dim=axis, keepdim=keep_dims)


@op("reduce_argmin", fresh=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """iOS15, iOS17 reduction.reduce_argmin: the first of equal values"""
    return torch.argmin(x, dim=axis, keepdim=keep_dims)


@op("reduce_l1_norm", fresh=True, blocked=_blocked(torch.abs))
def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_l1_norm"""
    return x.abs().sum(dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_l2_norm", fresh=True, blocked=_blocked(torch.square, torch.sqrt))
def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_l2_norm"""
    return torch.sqrt((x * x).sum(dim=_axes(x, axes), keepdim=keep_dims).float())


@op("reduce_log_sum", fresh=True, blocked=_blocked(then=torch.log))
def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_log_sum"""
    return torch.log(x.sum(dim=_axes(x, axes), keepdim=keep_dims).float())


@op("reduce_log_sum_exp", fresh=True, blocked=_log_sum_exp_blocked)
def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_log_sum_exp: the largest value is taken out first"""
    return torch.logsumexp(x.float(), dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_max", kind=Kind.NATIVE, fresh=True)
def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_max"""
    return torch.amax(x, dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_min", kind=Kind.NATIVE, fresh=True)
def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_min"""
    return torch.amin(x, dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_mean", fresh=True, blocked=_mean_blocked)
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


@op("reduce_sum", fresh=True, blocked=_blocked())
def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_sum"""
    return x.sum(dim=_axes(x, axes), keepdim=keep_dims)


@op("reduce_sum_square", fresh=True, blocked=_blocked(torch.square))
def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """iOS15 reduction.reduce_sum_square"""
    return (x * x).sum(dim=_axes(x, axes), keepdim=keep_dims)
