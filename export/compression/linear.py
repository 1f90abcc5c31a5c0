"""Scales: int8 with one per output channel, int4 with a scale and an offset per 32 inputs.

The stored value is scale · (code − offset), so zero is always exact and the 16 values of an int4 block are a window of
16 whole multiples of its scale that holds zero. Several scales are tried, the one that just reaches the largest weights
and tighter ones that clip them; for each, the scale that fits its whole multiples best (least squares) is rounded to
fp16, and the error of exactly that scale is compared. Nearest codes are chosen for the winner. Plain rounding is among
what is tried, so the result is never worse.
Work goes in pieces that stay in the cache, the weights of a block down a column: sums then run along rows of memory.
Multiples that fp16 cannot hold are never used, and no scale is less than the smallest positive fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from export.compression.schemes import Scheme
from export.compression.stored import FP16_LEAST, FP16_MAX, FP16_NORMAL, Codes

VALUES = 1 << 18  # of one piece
# Scales to try, as parts of the one that clips nothing. More cost time and gain little: thirty for a block 0.03 dB.
CHANNEL_PARTS = (1.0, 0.97, 0.94)
BLOCK_PARTS = (1.04, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68)


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
    """Compresses rows (n, K, ...) float32 with a scale per row; importance (K,) with mean 1 or None."""
    column = None
    if importance is not None:
        kernel = importance.reshape(-1, *[1] * (rows.ndim - 2)).expand(rows.shape[1:])
        column = kernel.reshape(-1, 1)
    return _compress(scheme, rows, rows[0].numel(), CHANNEL_PARTS, lambda _: column)


def compress_blocks(scheme: Scheme, rows: Tensor, importance: Tensor | None) -> Codes:
    """Compresses rows (n, K) or (n, K, 1, 1) float32 with a scale per block of inputs; importance as above."""
    if importance is None:
        return _compress(scheme, rows, scheme.group, BLOCK_PARTS, lambda _: None)
    columns = importance.reshape(-1, scheme.group).t()
    return _compress(scheme, rows, scheme.group, BLOCK_PARTS, lambda count: columns.repeat(1, count))


def _compress(
    scheme: Scheme, rows: Tensor, size: int, parts: tuple[float, ...], weights: Callable[[int], Tensor | None]
) -> Codes:
    """Compresses blocks of `size` weights; `weights` gives the importance of so many rows, as `_search` takes it."""
    flat = rows.reshape(len(rows), -1)
    codes = torch.empty(flat.shape, dtype=torch.int8)
    scale = torch.empty((len(rows), flat.shape[1] // size), dtype=torch.float16)
    offset = torch.empty(scale.shape, dtype=torch.int8)
    least = -(1 << scheme.bits - 1)  # of a code
    for part in _pieces(*flat.shape):
        count = len(flat[part])
        values = flat[part].reshape(-1, size).t().contiguous()  # (size, N): a column is a block
        best = _search(values, weights(count), _candidates(values, scheme, parts))
        multiples = torch.empty_like(values)
        _round(values, best.scale, best.low, best.low + (1 << scheme.bits) - 1, multiples)
        shift = least - best.low
        codes[part] = multiples.add_(shift).to(torch.int8).t().reshape(count, -1)
        scale[part] = best.scale.half().reshape(count, -1)
        offset[part] = shift.to(torch.int8).reshape(count, -1)
    tables = {"scale": scale, "offset": offset}
    shapes = scheme.table_shapes(tuple(rows.shape))
    return Codes(codes.reshape(rows.shape), {name: tables[name].reshape(shape) for name, shape in shapes.items()})


def _pieces(rows: int, width: int) -> Iterator[slice]:
    step = max(1, VALUES // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _candidates(values: Tensor, scheme: Scheme, parts: tuple[float, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Scales to try for columns of (M, N), each with the least and the greatest whole multiple that it may take.

    Affine blocks choose the window that holds zero and most of the block; symmetric ones have one.
    """
    steps, half = (1 << scheme.bits) - 1, (1 << scheme.bits - 1) - 1
    least, most = values.amin(0).clamp_(max=0), values.amax(0).clamp_(min=0)
    full = (most - least) / steps if scheme.affine else torch.maximum(least / -(half + 1), most / half)
    plain = torch.maximum(-least, most) / half
    tried = [plain, *(full * part for part in parts)]
    if bool((full < FP16_NORMAL).any()):  # the nearest subnormal may be a third too small
        tried.append(full + FP16_LEAST)
    for wanted in tried:
        scale = _half(wanted)
        low = torch.full_like(scale, -(half + 1))
        if scheme.affine:
            first, last = (least / scale).round_(), (most / scale).round_()
            low = (first + ((last - first - steps).clamp_(min=0) / 2).floor_()).clamp_(-steps, 0)
        yield scale, low, low + steps


def _half(scale: Tensor) -> Tensor:
    """The nearest fp16 that is positive and finite, as float32."""
    return scale.clamp(FP16_LEAST, FP16_MAX).half().float()


def _search(values: Tensor, weights: Tensor | None, candidates: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Best:
    """The best candidate for each column of values (M, N), weighted by (M, 1), (M, N) or None.

    With whole multiples r and scale s, Σ h(w − s·r)² is Σ h·w² less s·(2·Σ h·w·r − s·Σ h·r²): the worth. Summed in
    float64, because torch sums in another order when there are other columns beside: that must not show in fp16.
    """
    weighted = values if weights is None else values * weights
    found = torch.zeros_like(values[0])
    best = Best(torch.full_like(found, -torch.inf, dtype=torch.float64), found, found.clone())
    multiples, products = torch.empty_like(values), torch.empty_like(values)
    for wanted, low, high in candidates:
        scale = _half(wanted)
        _round(values, scale, low, high, multiples)
        along = torch.mul(multiples, weighted, out=products).sum(0, dtype=torch.float64)
        torch.mul(multiples, multiples, out=products)
        square = (products if weights is None else products.mul_(weights)).sum(0, dtype=torch.float64)
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
