"""Scales: int8 with one per output channel, int4 with a scale and an offset per 32 inputs.

The stored value is scale · (code − offset), so zero is always exact and the 16 values of a block are a window of 16
whole multiples of its scale that holds zero. Several scales are tried, the rounding of the largest weights and tighter
ones that clip them; for each, the scale that fits its whole multiples best (least squares) is rounded to fp16, and the
error of exactly that scale is compared. Nearest codes are chosen for the winner. Plain rounding is among what is
tried, symmetric and affine, so the result is never worse.
Work goes in pieces that stay in the cache, inputs of a block down the columns: sums then run along rows of memory.
Multiples that fp16 cannot hold are never used, and no scale is less than the smallest positive fp16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from export.compression.kinds import FP16_LEAST, FP16_MAX, Codes
from export.compression.schemes import Scheme

VALUES = 1 << 18  # of one piece
# Parts of the scale that clips nothing; a block's 32 weights reach less far than a channel's hundreds.
CHANNEL_PARTS = (1.0, 0.98, 0.95)
BLOCK_PARTS = (1.0, 0.94, 0.88, 0.82, 0.76)


@dataclass
class Best:
    """The best scale so far of each of N blocks: its worth, the scale (fp16 values), the least whole multiple."""

    worth: Tensor
    scale: Tensor
    low: Tensor

    def take(self, worth: Tensor, scale: Tensor, low: Tensor) -> None:
        """Takes over where `worth` is greater."""
        better = worth > self.worth
        torch.where(better, worth, self.worth, out=self.worth)
        torch.where(better, scale, self.scale, out=self.scale)
        torch.where(better, low, self.low, out=self.low)


def compress_channels(scheme: Scheme, rows: Tensor, importance: Tensor | None) -> Codes:
    """Compresses rows (n, K, ...) float32 with a scale per row, no offset; importance (K,) with mean 1 or None."""
    flat = rows.reshape(len(rows), -1)
    weights = _spread_over_kernel(importance, rows)
    codes, scale = torch.empty(flat.shape, dtype=torch.int8), torch.empty(len(rows), dtype=torch.float16)
    for part in _pieces(*flat.shape):
        values = flat[part].t().contiguous()
        best = _search(values, weights, _channel_candidates(values))
        codes[part] = _multiples(values, best).t().to(torch.int8)
        scale[part] = best.scale.half()
    return Codes(codes.reshape(rows.shape), {"scale": scale.reshape(scheme.table_shapes(tuple(rows.shape))["scale"])})


def compress_blocks(scheme: Scheme, rows: Tensor, importance: Tensor | None) -> Codes:
    """Compresses rows (n, K) or (n, K, 1, 1) float32 with scale and offset per block of inputs; importance as above."""
    size, width = scheme.group, rows.shape[1]
    codes = torch.empty((len(rows), width), dtype=torch.int8)
    scale, offset = torch.empty((len(rows), width // size), dtype=torch.float16), torch.empty(0)
    offset = torch.empty(scale.shape, dtype=torch.int8)
    for part in _pieces(len(rows), width):
        count = len(range(*part.indices(len(rows))))
        values = rows[part].reshape(-1, size).t().contiguous()  # (32, N): a column is a block
        weights = None if importance is None else importance.reshape(-1, size).t().repeat(1, count)
        best = _search(values, weights, _block_candidates(values))
        shift = -8 - best.low
        codes[part] = _multiples(values, best).add_(shift).to(torch.int8).t().reshape(count, width)
        scale[part] = best.scale.half().reshape(count, -1)
        offset[part] = shift.to(torch.int8).reshape(count, -1)
    shape = scheme.table_shapes(tuple(rows.shape))["scale"]
    return Codes(codes.reshape(rows.shape), {"scale": scale.reshape(shape), "offset": offset.reshape(shape)})


def _pieces(rows: int, width: int) -> Iterator[slice]:
    step = max(1, VALUES // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _spread_over_kernel(importance: Tensor | None, rows: Tensor) -> Tensor | None:
    """The importance of each weight of a row, as a column (K · ..., 1)."""
    if importance is None:
        return None
    column = importance.reshape(-1, *[1] * (rows.ndim - 2))
    return column.expand(rows.shape[1:]).reshape(-1, 1)


def _channel_candidates(values: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Scales to try for columns of (K, N), with the least and greatest multiple: −128 … 127 of each."""
    low, high = torch.full_like(values[0], -128.0), torch.full_like(values[0], 127.0)
    least, most = values.amin(0), values.amax(0)
    full = torch.maximum(least / -128, most / 127)
    yield torch.maximum(-least, most) / 127, low, high  # plain rounding
    for part in CHANNEL_PARTS:
        yield full * part, low, high


def _block_candidates(values: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Scales to try for columns of (32, N), each with the 16 multiples that hold zero and most of the block."""
    least, most = values.amin(0).clamp_(max=0), values.amax(0).clamp_(min=0)
    scales = [torch.maximum(-least, most) / 7, *((most - least) / 15 * part for part in BLOCK_PARTS)]
    for wanted in scales:
        scale = _half(wanted)
        first, last = (least / scale).round_(), (most / scale).round_()
        low = (first + ((last - first - 15).clamp_(min=0) / 2).floor_()).clamp_(-15, 0)
        yield scale, low, low + 15


def _half(scale: Tensor) -> Tensor:
    """The nearest fp16 that is positive and finite, as float32."""
    return scale.clamp(FP16_LEAST, FP16_MAX).half().float()


def _search(values: Tensor, weights: Tensor | None, candidates: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Best:
    """The best candidate for each column of values (M, N), weighted by (M, 1), (M, N) or None.

    With whole multiples r and scale s, Σ h(w − s·r)² is Σ h·w² less s·(2·Σ h·w·r − s·Σ h·r²): the worth.
    """
    weighted = values if weights is None else values * weights
    found = torch.zeros_like(values[0])
    best = Best(torch.full_like(found, -torch.inf), found, found.clone())
    multiples, products = torch.empty_like(values), torch.empty_like(values)
    for wanted, low, high in candidates:
        scale = _half(wanted)
        _round(values, scale, low, high, multiples)
        along = torch.mul(multiples, weighted, out=products).sum(0)
        torch.mul(multiples, multiples, out=products)
        square = (products if weights is None else products.mul_(weights)).sum(0)
        fitted = _half(along / square.clamp(min=1e-30))
        reach = torch.maximum(-low, high)
        for fit in (scale, torch.where(fitted * reach <= FP16_MAX, fitted, scale)):
            best.take(fit * (2 * along - fit * square), fit, low)
    return best


def _round(values: Tensor, scale: Tensor, low: Tensor, high: Tensor, out: Tensor) -> None:
    """The nearest multiples of the columns' scales between low and high, of those that fp16 can hold."""
    most = (FP16_MAX / scale).floor_()
    torch.div(values, scale, out=out)
    torch.round(out, out=out)
    torch.clamp(out, torch.maximum(low, -most), torch.minimum(high, most), out=out)


def _multiples(values: Tensor, best: Best) -> Tensor:
    """The codes less their offset (M, N), as float32 whole numbers."""
    found = torch.empty_like(values)
    width = 255.0 if bool((best.low < -15).any()) else 15.0
    _round(values, best.scale, best.low, best.low + width, found)
    return found
