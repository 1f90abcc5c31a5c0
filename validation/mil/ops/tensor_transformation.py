"""Shapes: reshaping, transposing, joining, repeating (iOS15-iOS18 tensor_transformation and tensor_operation)."""

from __future__ import annotations

import torch

from validation.mil.registry import Ints, Kind, Tensor, Tensors, op


@op("identity", kind=Kind.MOVE)
def identity(x: Tensor) -> Tensor:
    """iOS15 tensor_operation.identity"""
    return x


@op("reshape", kind=Kind.MOVE)
def reshape(x: Tensor, shape: Ints) -> Tensor:
    """iOS15, iOS17 tensor_transformation.reshape: 0 keeps x's length, -1 takes what is left"""
    return x.reshape([x.shape[axis] if length == 0 else length for axis, length in enumerate(shape)])


@op("transpose", kind=Kind.MOVE)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """iOS15, iOS17 tensor_transformation.transpose"""
    return x.permute(perm)


@op("expand_dims", kind=Kind.MOVE)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """iOS15, iOS17 tensor_transformation.expand_dims: axes count in the result"""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", kind=Kind.MOVE)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """iOS15, iOS17 tensor_transformation.squeeze: the given axes, each of length 1 (default: all such)"""
    if axes is None:
        return x.squeeze()
    long = [axis for axis in axes if x.shape[axis] != 1]
    if long:
        raise ValueError(f"cannot squeeze axes {long} of shape {list(x.shape)}")
    return x.squeeze(axes)


@op("concat", kind=Kind.MOVE, aliases=False)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """iOS15 tensor_operation.concat; interleave takes one entry of each in turn"""
    if not interleave:
        return torch.cat(values, dim=axis)
    axis = axis % values[0].ndim
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@op("stack", kind=Kind.MOVE, aliases=False)
def stack(values: Tensors, axis: int) -> Tensor:
    """iOS15 tensor_operation.stack"""
    return torch.stack(values, dim=axis)


@op("tile", kind=Kind.MOVE)
def tile(x: Tensor, reps: Ints) -> Tensor:
    """iOS15 tensor_operation.tile"""
    return x.repeat(reps)


@op("select", kind=Kind.MOVE, aliases=False)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """iOS15 control_flow.select: a where cond, else b; a scalar cond picks one of them"""
    return torch.where(cond, a, b)


@op("shape", kind=Kind.MOVE, aliases=False)
def shape(x: Tensor) -> Tensor:
    """iOS15 tensor_operation.shape"""
    return torch.tensor(x.shape, dtype=torch.int32)
