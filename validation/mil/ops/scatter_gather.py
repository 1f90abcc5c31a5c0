"""Gathers and scatters (iOS15, iOS16, iOS17 scatter_gather). Negative indices count from the end."""

from __future__ import annotations

import torch

from validation.mil.registry import Kind, Tensor, op


def _wrapped(indices: Tensor, length: int, name: str) -> Tensor:
    """indices as int64 within [0, length); IndexError names the first that is out of range."""
    whole = indices.long()
    outside = (whole < -length) | (whole >= length)
    if bool(outside.any()):
        raise IndexError(f"{name}: index {int(whole[outside].reshape(-1)[0])} on an axis of {length} entries")
    return torch.where(whole < 0, whole + length, whole)


@op("gather", kind=Kind.MOVE)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """iOS15, iOS16, iOS17 scatter_gather.gather: numpy.take along `axis`, batch by batch"""
    axis = axis % x.ndim
    whole = _wrapped(indices, x.shape[axis], "gather")
    if batch_dims == 0:
        shape = x.shape[:axis] + whole.shape + x.shape[axis + 1 :]
        return x.index_select(axis, whole.reshape(-1)).reshape(shape)
    return _gather_batched(x, whole, axis, batch_dims)


def _gather_batched(x: Tensor, indices: Tensor, axis: int, batch_dims: int) -> Tensor:
    batch = x.shape[:batch_dims]
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_indices = indices.reshape(-1, *indices.shape[batch_dims:])
    inner = axis - batch_dims
    rows = []
    for values, picks in zip(flat_x, flat_indices, strict=True):
        shape = values.shape[:inner] + picks.shape + values.shape[inner + 1 :]
        rows.append(values.index_select(inner, picks.reshape(-1)).reshape(shape))
    return torch.stack(rows).reshape(batch + rows[0].shape)
