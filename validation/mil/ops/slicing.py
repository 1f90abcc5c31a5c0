"""Slices and slice updates (iOS15, iOS17, iOS18 tensor_transformation)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from validation.mil.registry import Bools, Ints, Kind, Tensor, Tensors, op


def _resolved(
    shape: torch.Size,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[tuple[slice, ...], list[int]]:
    """Python slices per axis (steps may be negative), and the axes to squeeze."""
    rank = len(shape)
    strides = stride or (1,) * rank
    keep_begin = begin_mask or (False,) * rank
    keep_end = end_mask or (False,) * rank
    squeeze = squeeze_mask or (False,) * rank
    slices = []
    for axis in range(rank):
        if squeeze[axis]:
            at = begin[axis] + shape[axis] if begin[axis] < 0 else begin[axis]
            if not 0 <= at < shape[axis]:
                raise IndexError(f"index {begin[axis]} on axis {axis}, which has {shape[axis]} entries")
            slices.append(slice(at, at + 1, 1))
        else:
            first = None if keep_begin[axis] else begin[axis]
            last = None if keep_end[axis] else end[axis]
            slices.append(slice(first, last, strides[axis]))
    return tuple(slices), [axis for axis in range(rank) if squeeze[axis]]


def _is_backward(item: slice) -> bool:
    return item.step is not None and item.step < 0


def _forward(shape: torch.Size, slices: tuple[slice, ...]) -> tuple[slice, ...]:
    """The same entries cut forwards: torch has no negative steps, what it cuts is flipped."""
    forward = list(slices)
    for axis, item in enumerate(slices):
        if _is_backward(item):
            picked = range(shape[axis])[item]
            forward[axis] = slice(picked[-1], picked[0] + 1, -picked.step) if len(picked) else slice(0, 0)
    return tuple(forward)


@lru_cache(maxsize=4096)
def _read_place(shape: torch.Size, *bounds: Any) -> tuple[tuple[slice, ...], list[int], list[int]]:
    """Forward slices per axis, the axes to flip afterwards, and those to squeeze."""
    slices, squeezed = _resolved(shape, *bounds)
    return _forward(shape, slices), [axis for axis, item in enumerate(slices) if _is_backward(item)], squeezed


@op("slice_by_index", kind=Kind.MOVE)
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """iOS15, iOS17 tensor_transformation.slice_by_index: numpy's slicing; squeezed axes take one index"""
    slices, flipped, squeezed = _read_place(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = x[slices].flip(flipped) if flipped else x[slices]
    return result.squeeze(squeezed) if squeezed else result


@op("slice_by_size", kind=Kind.MOVE)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """iOS15, iOS17 tensor_transformation.slice_by_size: size -1 takes the rest of the axis"""
    result = x
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        length = x.shape[axis] - first if length == -1 else length
        if not 0 <= first <= first + length <= x.shape[axis]:
            raise IndexError(f"slice of {length} from {first} on axis {axis}, which has {x.shape[axis]} entries")
        result = result.narrow(axis, first, length)
    return result


def _check_within(shape: torch.Size, slices: tuple[slice, ...]) -> None:
    """Raise IndexError where a slice begins or ends outside its axis: numpy would write what lies inside."""
    for axis, (item, length) in enumerate(zip(slices, shape, strict=True)):
        back = _is_backward(item)
        if item.start is not None and not -length <= item.start <= length - back:
            raise IndexError(f"begin {item.start} on axis {axis}, which has {length} entries")
        if item.stop is not None and not -length - back <= item.stop <= length - back:
            raise IndexError(f"end {item.stop} on axis {axis}, which has {length} entries")


@lru_cache(maxsize=4096)
def _write_place(shape: torch.Size, *bounds: Any) -> tuple[tuple[slice | int, ...], tuple[int, ...], list[int]]:
    """What an update writes: an index of x (squeezed axes by number), its shape, the axes to flip the update by."""
    slices, squeezed = _resolved(shape, *bounds)
    _check_within(shape, slices)
    forward = _forward(shape, slices)
    kept = [axis for axis in range(len(shape)) if axis not in squeezed]
    index = tuple(item.start if axis in squeezed else item for axis, item in enumerate(forward))
    lengths = tuple(len(range(shape[axis])[forward[axis]]) for axis in kept)
    return index, lengths, [place for place, axis in enumerate(kept) if _is_backward(slices[axis])]


def _updated(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """Write `update` into x[begin:end] and return x."""
    index, lengths, flipped = _write_place(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if update.shape != lengths:
        raise IndexError(
            f"update of shape {list(update.shape)} for begin {list(begin)}, end {list(end)} of {list(x.shape)},"
            f" which is a slice of {list(lengths)}"
        )
    x[index].copy_(update.flip(flipped) if flipped else update)
    return x


@op("slice_update", kind=Kind.MOVE, fresh=True, inplace=_updated)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """iOS18 tensor_transformation.slice_update: a copy of x with x[begin:end] replaced; IndexError outside of x"""
    return _updated(x.clone(), update, begin, end, stride, begin_mask, end_mask, squeeze_mask)


@op("split", kind=Kind.MOVE)
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    """iOS15 tensor_operation.split: into equal parts, or parts of the given sizes"""
    if split_sizes is not None:
        return Tensors(torch.split(x, list(split_sizes), dim=axis))
    if not num_splits or x.shape[axis] % num_splits:
        raise ValueError(f"axis {axis} of {x.shape[axis]} entries cannot be split into {num_splits} equal parts")
    return Tensors(torch.split(x, x.shape[axis] // num_splits, dim=axis))
