"""Compressed constants (iOS16 constexpr_ops, iOS18 compression), decompressed when a function is first run.

They take and give numpy arrays: they are evaluated once, before any op runs. iOS16 and iOS18 share names but not
parameters; a function takes both sets and tells them apart by what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from validation.mil.dtypes import unpack
from validation.mil.ops.per_axis import along
from validation.mil.registry import Array, Arrays, Ints, Kind, op

MOST_AT_ONCE = 1 << 22  # values of a palette's result


@op("constexpr_affine_dequantize", kind=Kind.MOVE)
def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: int) -> Array:
    """iOS16 constexpr_ops.constexpr_affine_dequantize: scale * (quantized_data - zero_point)"""
    values = quantized_data.astype(np.float32) - along(zero_point.astype(np.float32), quantized_data.ndim, axis)
    dense: Array = values * along(scale.astype(np.float32), quantized_data.ndim, axis)
    return dense


@op("constexpr_cast", kind=Kind.MOVE)
def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """iOS16, iOS18 constexpr_cast: fp16 to fp32"""
    return source_val.astype(np.float32)


def _in_blocks(values: Array, groups: Array) -> tuple[Array, Array]:
    """values with every axis split into blocks, and one group per block to go with it: no group is repeated."""
    split: list[int] = []
    for length, count in zip(values.shape, groups.shape, strict=True):
        if length % count:
            raise ValueError(f"{count} groups do not divide an axis of {length}")
        split += (count, length // count)
    return values.reshape(split), groups.reshape([side for count in groups.shape for side in (count, 1)])


@op("constexpr_blockwise_shift_scale", kind=Kind.MOVE)
def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """iOS18 compression.constexpr_blockwise_shift_scale: scale * (data - offset), one pair per block"""
    values = data.astype(np.float32, order="C")
    for groups, apply in ((offset, np.subtract), (scale, np.multiply)):
        if groups is not None:
            blocks, own = _in_blocks(values, groups.astype(np.float32))
            apply(blocks, own, out=blocks)
    return values


def _tables(shape: tuple[int, ...], groups: tuple[int, ...]) -> Array:
    """Which table each element of `shape` reads, when `groups` tables divide its axes: int64 of that shape."""
    number = np.zeros((1,) * len(shape), np.int64)
    for axis, (length, count) in enumerate(zip(shape, groups, strict=True)):
        if length % count:
            raise ValueError(f"{count} tables do not divide an axis of {length}")
        place = (np.arange(length) // (length // count)).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        number = number * count + place
    return np.broadcast_to(number, shape)


def _runs_of_rows(values: Array) -> Iterator[Any]:
    """Slices along the first axis of about MOST_AT_ONCE values each; all of a scalar."""
    if not values.ndim or not values.size:
        yield ...
        return
    step = max(1, MOST_AT_ONCE * len(values) // values.size)
    for first in range(0, len(values), step):
        yield slice(first, first + step)


@op("constexpr_lut_to_dense", kind=Kind.MOVE)
def constexpr_lut_to_dense(
    indices: Array, lut: Array, shape: Ints | None = None, vector_axis: int | None = None
) -> Array:
    """iOS16 (one table, packed indices) and iOS18 (tables per group, vectors) constexpr_lut_to_dense"""
    if shape is not None:
        bits = int(lut.size).bit_length() - 1
        count = int(np.prod(shape, dtype=np.int64))
        picked: Array = lut[unpack(indices.reshape(-1), bits, count, signed=False)]
        return picked.reshape(shape)
    entries, width = lut.shape[-2:]
    tables = _tables(indices.shape, lut.shape[:-2])
    vectors = np.empty((*indices.shape, width), lut.dtype)
    for rows in _runs_of_rows(indices):  # the places are eight bytes each, of a head 4 GB
        vectors[rows] = lut.reshape(-1, width)[tables[rows] * entries + indices[rows]]
    if width == 1:
        return vectors[..., 0]
    if vector_axis is None:
        raise ValueError(f"a table of {width}-vectors needs a vector_axis")
    axis = vector_axis % indices.ndim
    joined = np.moveaxis(vectors, -1, axis + 1)
    return joined.reshape(*indices.shape[:axis], -1, *indices.shape[axis + 1 :])


def _dense(nonzero: Array, mask: Array) -> Array:
    """mask's shape, with `nonzero` where it is set and zeros elsewhere."""
    if int(np.count_nonzero(mask)) != nonzero.size:
        raise ValueError(f"{nonzero.size} values for {int(np.count_nonzero(mask))} set bits")
    dense = np.zeros(mask.shape, nonzero.dtype)
    dense[mask != 0] = nonzero.reshape(-1)
    return dense


@op("constexpr_sparse_to_dense", kind=Kind.MOVE)
def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Ints | None = None) -> Array:
    """iOS16 (packed mask and shape) and iOS18 (mask of the result's shape) constexpr_sparse_to_dense"""
    if shape is not None:
        count = int(np.prod(shape, dtype=np.int64))
        mask = unpack(mask.reshape(-1), 1, count, signed=False).reshape(shape)
    return _dense(nonzero_data, mask)


@op("constexpr_lut_to_sparse", kind=Kind.MOVE)
def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> Arrays:
    """iOS18 compression.constexpr_lut_to_sparse: (mask, values), both widened along vector_axis"""
    dense = constexpr_lut_to_dense(_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis)
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], axis=vector_axis)
    return Arrays((mask, dense[mask != 0]))


@op("constexpr_sparse_blockwise_shift_scale", kind=Kind.MOVE)
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> Arrays:
    """iOS18 compression.constexpr_sparse_blockwise_shift_scale: (mask, values)"""
    dense = constexpr_blockwise_shift_scale(_dense(nonzero_data, data_mask), scale, offset)
    return Arrays((data_mask, dense[data_mask != 0]))
