"""Gathers and scatters (iOS15, iOS16, iOS17 scatter_gather).

Negative indices count from the end, as in iOS15; iOS17 calls them undefined, and with `validate_indices` an error.
"""

from __future__ import annotations

import torch

from validation.mil.registry import Kind, Tensor, op


def _wrapped(indices: Tensor, length: int, name: str, strict: bool) -> Tensor:
    """indices as int64 within [0, length); IndexError names the first that is out of range; strict: or negative."""
    whole = indices.long()
    outside = (whole < (0 if strict else -length)) | (whole >= length)
    if bool(outside.any()):
        raise IndexError(f"{name}: index {int(whole[outside].reshape(-1)[0])} on an axis of {length} entries")
    return torch.where(whole < 0, whole + length, whole)


@op("gather", kind=Kind.MOVE, fresh=True)
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """iOS15, iOS16, iOS17 scatter_gather.gather: numpy.take along `axis`, batch by batch"""
    axis = axis % x.ndim
    whole = _wrapped(indices, x.shape[axis], "gather", validate_indices)
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


@op("gather_along_axis", kind=Kind.MOVE, fresh=True)
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """iOS15, iOS16, iOS17 scatter_gather.gather_along_axis: numpy.take_along_axis"""
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis], "gather_along_axis", validate_indices))


def _flat_places(indices: Tensor, lengths: torch.Size, name: str, strict: bool) -> Tensor:
    """Row-major places of index tuples (..., K) into axes of `lengths` (K,)."""
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis, length in enumerate(lengths):
        place = place * length + _wrapped(indices[..., axis], length, name, strict)
    return place


@op("gather_nd", kind=Kind.MOVE, fresh=True)
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """iOS15, iOS16, iOS17 scatter_gather.gather_nd: the last axis of indices names a slice of x, batch by batch"""
    depth = indices.shape[-1]
    batch, rest = x.shape[:batch_dims], x.shape[batch_dims + depth :]
    places = _flat_places(indices, x.shape[batch_dims : batch_dims + depth], "gather_nd", validate_indices)
    rows = x.reshape(batch.numel(), -1, *rest)
    flat = places.reshape(batch.numel(), -1)
    picked = torch.stack([row.index_select(0, place) for row, place in zip(rows, flat, strict=True)])
    return picked.reshape(*indices.shape[:-1], *rest)


def _combine(data: Tensor, place: Tensor, updates: Tensor, mode: str) -> Tensor:
    """data (N, ...) with updates (M, ...) brought in at rows `place` (M,), one after another where rows repeat."""
    result = data.clone()
    if mode == "update":
        result[place] = updates
    elif mode in ("add", "sub"):
        result.index_add_(0, place, updates if mode == "add" else -updates)
    elif mode in ("mul", "div", "max", "min"):
        _combine_rows(result, place, updates, mode)
    else:
        raise ValueError(f"unknown scatter mode {mode!r}")
    return result


def _combine_rows(result: Tensor, place: Tensor, updates: Tensor, mode: str) -> None:
    joins = {"mul": torch.mul, "max": torch.maximum, "min": torch.minimum, "div": torch.div}
    for row, update in zip(place.tolist(), updates, strict=True):
        result[row] = joins[mode](result[row], update)


@op("scatter", fresh=True)
def scatter(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """iOS15, iOS17 scatter_gather.scatter: slices of data at `indices` of `axis` are joined with updates"""
    axis = axis % data.ndim
    place = _wrapped(indices, data.shape[axis], "scatter", validate_indices).reshape(-1)
    lead = updates.movedim(list(range(axis, axis + indices.ndim)), list(range(indices.ndim)))
    rows = lead.reshape(place.numel(), *lead.shape[indices.ndim :])
    return _combine(data.movedim(axis, 0), place, rows, mode).movedim(0, axis)


@op("scatter_along_axis", fresh=True)
def scatter_along_axis(
    data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """iOS15, iOS17 scatter_gather.scatter_along_axis: element by element along `axis`"""
    axis = axis % data.ndim
    place = _wrapped(indices, data.shape[axis], "scatter_along_axis", validate_indices)
    grids = torch.meshgrid(*[torch.arange(length) for length in indices.shape], indexing="ij")
    flat = torch.zeros_like(place)
    for i, length in enumerate(data.shape):
        flat = flat * length + (place if i == axis else grids[i])
    return _combine(data.reshape(-1), flat.reshape(-1), updates.reshape(-1), mode).reshape(data.shape)


@op("scatter_nd", fresh=True)
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """iOS15, iOS17 scatter_gather.scatter_nd: the last axis of indices names a slice of data"""
    depth = indices.shape[-1]
    rest = data.shape[depth:]
    place = _flat_places(indices, data.shape[:depth], "scatter_nd", validate_indices).reshape(-1)
    rows = data.reshape(-1, *rest)
    return _combine(rows, place, updates.reshape(place.numel(), *rest), mode).reshape(data.shape)
