"""Sorting, counting, padding, filling and boxes (iOS15, iOS16, iOS17 tensor_operation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from validation.mil.registry import Ints, Kind, Tensor, Tensors, op


@op("argsort", fresh=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """iOS15 tensor_operation.argsort: equal values keep their order"""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@op("topk", kind=Kind.MOVE, fresh=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensors:
    """iOS15, iOS16, iOS17 tensor_operation.topk: of equal values the first; k -1 takes all"""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    kept = values.narrow(axis, 0, count)
    return Tensors((kept, indices.narrow(axis, 0, count).int()) if return_indices else (kept,))


@op("band_part", kind=Kind.MOVE, fresh=True)
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """iOS15 tensor_operation.band_part: zeros outside `lower` and `upper` diagonals; -1 keeps all on that side"""
    rows = torch.arange(x.shape[-2]).unsqueeze(1)
    columns = torch.arange(x.shape[-1])
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        keep &= rows - columns <= lower
    if upper >= 0:
        keep &= columns - rows <= upper
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


@op("cumsum", fresh=True)
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """iOS15 tensor_operation.cumsum; exclusive leaves an element out of its own sum"""
    total = torch.cumsum(x.flip(axis) if reverse else x, dim=axis)
    if exclusive:
        shifted = total.narrow(axis, 0, x.shape[axis] - 1)
        total = torch.cat((torch.zeros_like(total.narrow(axis, 0, 1)), shifted), dim=axis)
    return total.flip(axis) if reverse else total


@op("fill", fresh=True)
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    """iOS15 tensor_operation.fill"""
    single = torch.zeros(()) if value is None else value.reshape(())
    return single.expand(shape).clone()


@op("fill_like", fresh=True)
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """iOS16 tensor_operation.fill_like"""
    filled: Tensor = fill(tuple(ref_tensor.shape), value)
    return filled


@op("flatten2d", kind=Kind.MOVE)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """iOS15 tensor_operation.flatten2d: the axes before `axis`, and the others"""
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for length in x.shape[:axis]:
        rows *= length
    return x.reshape(rows, x.numel() // rows if rows else 0)


@op("non_zero", fresh=True)
def non_zero(x: Tensor) -> Tensor:
    """iOS15 tensor_operation.non_zero: one row of indices per element that is not 0"""
    return torch.nonzero(x)


@op("one_hot", fresh=True)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    """iOS15, iOS17 tensor_operation.one_hot: an index out of range gives no on_value"""
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    shape = [1] * (indices.ndim + 1)
    shape[axis] = one_hot_vector_size
    hot = indices.unsqueeze(axis) == torch.arange(one_hot_vector_size).reshape(shape)
    on = torch.ones(()) if on_value is None else on_value.reshape(())
    off = torch.zeros(()) if off_value is None else off_value.reshape(())
    return torch.where(hot, on, off)


def _places(length: int, before: int, after: int, mode: str) -> Tensor:
    """Which entries an axis of `length` shows once padded."""
    places = torch.arange(-before, length + after)
    if mode == "replicate":
        return places.clamp(0, length - 1)
    if mode != "reflect":
        raise ValueError(f"unknown pad mode {mode!r}")
    if max(before, after) >= length:
        raise ValueError(f"a reflection of {max(before, after)} needs an axis longer than {length}")
    return length - 1 - (length - 1 - places.abs()).abs()


@op("pad", kind=Kind.MOVE)
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """iOS15, iOS17 tensor_operation.pad: (before, after) for each of the last axes"""
    pairs = list(zip(pad[0::2], pad[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            x = x.index_select(axis, _places(x.shape[axis], before, after, mode))
    return x


@op("range_1d", fresh=True)
def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """iOS15 tensor_operation.range_1d: start, start + step ... below end"""
    return torch.arange(start.item(), end.item(), step.item())


@op("sliding_windows", kind=Kind.MOVE)
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """iOS15, iOS17 tensor_transformation.sliding_windows: a new axis of `size` after `axis`"""
    axis = axis % x.ndim
    # Windows may overlap in x's memory: an update of one would reach its neighbours.
    return x.unfold(axis, size, stride).movedim(-1, axis + 1).contiguous()


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one box (4,) with others (M, 4), all as centre and size."""
    low = torch.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = torch.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = box[2] * box[3] + others[:, 2] * others[:, 3] - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


def _survivors(
    boxes: Tensor, scores: Tensor, iou: float, threshold: float | None, most: int, per_class: bool
) -> list[int]:
    """Indices of the kept boxes of one image, best first: boxes (B, 4), scores (B, K)."""
    best, label = scores.max(dim=-1)
    order = torch.argsort(best, descending=True, stable=True)
    kept: list[int] = []
    alive = torch.ones(len(best), dtype=torch.bool) if threshold is None else best >= threshold
    for index in order.tolist():
        if len(kept) == most:
            break
        if not alive[index]:
            continue
        kept.append(index)
        beaten = _overlap(boxes[index], boxes) > iou
        alive &= ~(beaten & (label == label[index])) if per_class else ~beaten
    return kept


@op("non_maximum_suppression", fresh=True)
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> Tensors:
    """iOS15 (boxes (n, B, 4), four results) and iOS17 (boxes (n, 4, B), three results) non_maximum_suppression

    Places beyond the kept boxes hold zeros and index -1. iOS17 dropped score_threshold, which tells them apart.
    """
    last = score_threshold is None
    by_box = boxes.mT if last else boxes
    by_score = scores.mT if last else scores
    count = by_box.shape[0]
    out_boxes = torch.zeros(count, max_boxes, 4, dtype=boxes.dtype)
    out_scores = torch.zeros(count, max_boxes, by_score.shape[-1], dtype=scores.dtype)
    out_indices = torch.full((count, max_boxes), -1, dtype=torch.int32)
    lengths = torch.zeros(count, dtype=torch.int32)
    for image in range(count):
        kept = _survivors(
            by_box[image], by_score[image], iou_threshold, score_threshold, max_boxes, per_class_suppression
        )
        lengths[image] = len(kept)
        out_boxes[image, : len(kept)] = by_box[image, kept]
        out_scores[image, : len(kept)] = by_score[image, kept]
        out_indices[image, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
    if last:
        return Tensors((out_boxes.mT, out_scores.mT, out_indices))
    return Tensors((out_boxes, out_scores, out_indices, lengths))
