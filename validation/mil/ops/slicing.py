"""Slices and slice updates (iOS15, iOS17, iOS18 tensor_transformation)."""

from __future__ import annotations

from functools import lru_cache

import torch

from validation.mil.registry import Bools, Ints, Kind, Tensor, Tensors, op


@lru_cache(maxsize=4096)
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


def _cut(x: Tensor, slices: tuple[slice, ...]) -> Tensor:
    """x[slices]; torch has no negative steps, so those axes are cut forwards and flipped."""
    flipped = [axis for axis, item in enumerate(slices) if item.step is not None and item.step < 0]
    if not flipped:
        return x[slices]
    forward = list(slices)
    for axis in flipped:
        picked = range(x.shape[axis])[slices[axis]]
        forward[axis] = slice(picked[-1], picked[0] + 1, -picked.step) if len(picked) else slice(0, 0)
    return x[tuple(forward)].flip(flipped)


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
    slices, squeezed = _resolved(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    result = _cut(x, slices)
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
    slices, squeezed = _resolved(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    flipped = [axis for axis, item in enumerate(slices) if item.step is not None and item.step < 0]
    if flipped:
        places = [range(x.shape[axis])[item] for axis, item in enumerate(slices)]
        if tuple(map(len, places)) != tuple(update.shape):
            raise IndexError(f"update of shape {list(update.shape)} into a slice of {[len(item) for item in places]}")
        index = torch.meshgrid(*[torch.tensor(list(item)) for item in places], indexing="ij")
        x[index] = update
        return x
    target = x[slices]
    if squeezed and update.shape != target.shape and update.numel() == target.numel():
        update = update.reshape(target.shape)
    if update.shape != target.shape:
        raise IndexError(
            f"update of shape {list(update.shape)} for begin {list(begin)}, end {list(end)} of {list(x.shape)},"
            f" which is a slice of {list(target.shape)}"
        )
    target.copy_(update)
    return x


@op("slice_update", kind=Kind.MOVE, inplace=_updated)
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
    """iOS18 tensor_transformation.slice_update: a copy of x with x[begin:end] replaced"""
    return _updated(x.clone(), update, begin, end, stride, begin_mask, end_mask, squeeze_mask)


@op("split", kind=Kind.MOVE)
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    """iOS15 tensor_operation.split: into equal parts, or parts of the given sizes"""
    if split_sizes is not None:
        return Tensors(torch.split(x, list(split_sizes), dim=axis))
    if not num_splits or x.shape[axis] % num_splits:
        raise ValueError(f"axis {axis} of {x.shape[axis]} entries cannot be split into {num_splits} equal parts")
    return Tensors(torch.split(x, x.shape[axis] // num_splits, dim=axis))
