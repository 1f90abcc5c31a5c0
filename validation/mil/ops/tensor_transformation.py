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
    """iOS15, iOS17 tensor_transformation.reshape: 0 keeps x's length, counted from the last axis; -1 takes the rest"""
    first = x.ndim - len(shape)  # iOS15 has as many entries as axes; before x's first axis iOS17 puts ones
    kept = [x.shape[first + place] if first + place >= 0 else 1 for place in range(len(shape))]
    return x.reshape([kept[place] if length == 0 else length for place, length in enumerate(shape)])


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


@op("concat", kind=Kind.MOVE, fresh=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """iOS15 tensor_operation.concat; interleave takes one entry of each in turn; scalars make a vector"""
    values = Tensors(tuple(value.reshape(1) if value.ndim == 0 else value for value in values))
    if not interleave:
        return torch.cat(values, dim=axis)
    axis = axis % values[0].ndim
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


@op("stack", kind=Kind.MOVE, fresh=True)
def stack(values: Tensors, axis: int) -> Tensor:
    """iOS15 tensor_operation.stack"""
    return torch.stack(values, dim=axis)


@op("tile", kind=Kind.MOVE)
def tile(x: Tensor, reps: Ints) -> Tensor:
    """iOS15 tensor_operation.tile"""
    return x.repeat(reps)


@op("select", kind=Kind.MOVE, fresh=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """iOS15 control_flow.select: a where cond, else b; a scalar cond picks one of them"""
    return torch.where(cond, a, b)


@op("shape", kind=Kind.MOVE, fresh=True)
def shape(x: Tensor) -> Tensor:
    """iOS15 tensor_operation.shape"""
    return torch.tensor(x.shape, dtype=torch.int32)


@op("reshape_like", kind=Kind.MOVE)
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Tensors, ends: Tensors, end_masks: Tensors) -> Tensor:
    """iOS16, iOS17 tensor_transformation.reshape_like: to the joined shape[begin:end] of the reference tensors"""
    lengths: list[int] = []
    for tensor, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        lengths += tensor.shape[int(begin) : None if bool(mask) else int(end)]
    return x.reshape(lengths)


@op("reverse", kind=Kind.MOVE, fresh=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """iOS15, iOS17 tensor_transformation.reverse: all axes by default"""
    return x.flip(list(range(x.ndim)) if axes is None else list(axes))


@op("reverse_sequence", kind=Kind.MOVE, fresh=True)
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """iOS15, iOS17 tensor_transformation.reverse_sequence: the first lengths[b] entries of each batch entry"""
    result = x.clone()
    for index, length in enumerate(lengths):
        axis = seq_axis % x.ndim
        inner = axis - (batch_axis % x.ndim < axis)
        part = result.select(batch_axis, index).narrow(inner, 0, length)
        part.copy_(part.flip(inner))
    return result


@op("depth_to_space", kind=Kind.MOVE)
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """iOS15 tensor_transformation.depth_to_space: channels are block row, block column, then depth"""
    batch, channels, height, width = x.shape
    depth = channels // block_size**2
    blocks = x.reshape(batch, block_size, block_size, depth, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, depth, height * block_size, width * block_size)


@op("space_to_depth", kind=Kind.MOVE)
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """iOS15 tensor_transformation.space_to_depth: the inverse of depth_to_space"""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // block_size, block_size, width // block_size, block_size)
    ordered = blocks.permute(0, 3, 5, 1, 2, 4)
    return ordered.reshape(batch, channels * block_size**2, height // block_size, width // block_size)


@op("pixel_shuffle", kind=Kind.MOVE)
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """iOS15 tensor_transformation.pixel_shuffle: channels are depth, then block row, block column, as in torch"""
    return torch.pixel_shuffle(x, upscale_factor)


@op("pixel_unshuffle", kind=Kind.MOVE)
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """iOS16 tensor_transformation.pixel_unshuffle"""
    return torch.pixel_unshuffle(x, downscale_factor)


@op("space_to_batch", kind=Kind.MOVE)
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """iOS15 tensor_transformation.space_to_batch: zeros around the last two axes, then their blocks into the batch"""
    top, bottom, left, right = paddings
    padded = torch.nn.functional.pad(x, [left, right, top, bottom])
    batch, channels, height, width = padded.shape
    rows, columns = block_shape
    blocks = padded.reshape(batch, channels, height // rows, rows, width // columns, columns)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // rows, width // columns)


@op("batch_to_space", kind=Kind.MOVE)
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """iOS15 tensor_transformation.batch_to_space: the inverse of space_to_batch, then cropped"""
    rows, columns = block_shape
    batch, channels, height, width = x.shape
    blocks = x.reshape(rows, columns, batch // (rows * columns), channels, height, width)
    whole = blocks.permute(2, 3, 4, 0, 5, 1).reshape(-1, channels, height * rows, width * columns)
    top, bottom, left, right = crops
    return whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]
