"""Where the points of a resized axis lie, and reading images between pixels.

The five sampling modes and their formulas: coremltools' resize_bilinear documentation (iOS15 image_resizing). Points
are computed in float64, so that they do not depend on the order of float32 roundings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from validation.mil.registry import Tensor

Grid = Callable[[Tensor, Tensor, int], Tensor]
_DOUBLE = torch.float64


def _steps(count: int) -> Tensor:
    return torch.arange(count, dtype=_DOUBLE)


def grid(mode: str, start: Tensor, end: Tensor, count: int) -> Tensor:
    """`count` points within [start, end] (pixel centres of the first and last pixel): (..., count) float64.

    start, end: (...) float64. Raises ValueError for an unknown mode.
    """
    first, span = start.unsqueeze(-1), (end - start).unsqueeze(-1)
    i = _steps(count)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return first + span / 2 if mode == "ALIGN_CORNERS" else first + 0 * span
        points = i * (span / (count - 1))
    elif mode == "DEFAULT":
        points = i * ((span + 1) / count)
    elif mode == "OFFSET_CORNERS":
        delta = torch.clamp(span, min=1) / count
        points = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * ((span + 1) / count) - 0.5
    else:
        raise ValueError(f"unknown sampling mode {mode!r}")
    # A box may run backwards: then its span is negative.
    return first + torch.clamp(points, torch.clamp(span, max=0), torch.clamp(span, min=0))


def axis_grid(mode: str, length: int, count: int) -> Tensor:
    """The points of an axis of `length` pixels resized to `count`: (count,) float64."""
    return grid(mode, torch.zeros((), dtype=_DOUBLE), torch.tensor(float(length - 1), dtype=_DOUBLE), count)


def linear_along(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """x read at `points` (count,) of one axis, linearly between its pixels."""
    low = points.floor().long().clamp(0, x.shape[axis] - 1)
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    part = (points - low).to(x.dtype if x.is_floating_point() else torch.float32).reshape(shape)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def reflect(points: Tensor, length: int, twice_low: int, twice_high: int) -> Tensor:
    """points folded back into [twice_low / 2, twice_high / 2], as often as needed."""
    low, span = twice_low / 2, (twice_high - twice_low) / 2
    if span == 0:
        return torch.zeros_like(points)
    away = (points - low).abs()
    extra = torch.remainder(away, span)
    folds = torch.floor(away / span)
    return torch.clamp(torch.where(folds % 2 == 0, extra + low, span - extra + low), 0, length - 1)


def _pixel(x: Tensor, rows: Tensor, columns: Tensor, padding_value: float | None) -> Tensor:
    """x (N, C, H, W) at whole places rows, columns (N, ...): (N, C, ...); outside `padding_value` (None: the edge)."""
    height, width = x.shape[-2:]
    place = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1).long()
    flat = place.reshape(place.shape[0], 1, -1).expand(-1, x.shape[1], -1)
    values = x.flatten(2).gather(2, flat).reshape(x.shape[0], x.shape[1], *place.shape[1:])
    if padding_value is None:
        return values
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    return torch.where(inside.unsqueeze(1), values, torch.tensor(padding_value, dtype=x.dtype))


def sample(x: Tensor, rows: Tensor, columns: Tensor, mode: str, padding_value: float | None) -> Tensor:
    """x (N, C, H, W) read at rows, columns (N, ...) in pixels: (N, C, ...), bilinear or nearest (halves to even).

    Pixels outside count as `padding_value`; None repeats the edge.
    """
    if mode == "nearest":
        return _pixel(x, rows.round(), columns.round(), padding_value)
    if mode != "bilinear":
        raise ValueError(f"unknown sampling mode {mode!r}")
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).to(x.dtype).unsqueeze(1), (columns - left).to(x.dtype).unsqueeze(1)
    upper = _pixel(x, top, left, padding_value) * (1 - right) + _pixel(x, top, left + 1, padding_value) * right
    lower = _pixel(x, top + 1, left, padding_value) * (1 - right) + _pixel(x, top + 1, left + 1, padding_value) * right
    return upper * (1 - down) + lower * down
