"""What anybody would do first: rounding to the nearest of evenly spaced values, and palettes of quantiles.

The tests hold the compression to losing no more than these.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from export.compression.schemes import Scheme


def weighted_error(weights: Tensor, found: Tensor, importance: Tensor | None = None) -> float:
    """Σ h_j (w_ij − q_ij)², in float64; (n, K) both."""
    square = (weights.double() - found.double()).square()
    return float((square if importance is None else square * importance.double()).sum())


def plain(scheme: Scheme, weights: Tensor) -> Iterator[Tensor]:
    """The weights (n, K) after each of the plain ways to store them in the scheme's form."""
    if scheme.kind == "palette":
        yield _quantiles(scheme, weights)
        return
    size = weights.shape[1] if scheme.kind == "channel" else scheme.group
    yield _symmetric(scheme.bits, weights.reshape(-1, size)).reshape(weights.shape)
    if scheme.affine:
        yield _affine(scheme.bits, weights.reshape(-1, size)).reshape(weights.shape)


def _symmetric(bits: int, blocks: Tensor) -> Tensor:
    most = (1 << bits - 1) - 1
    scale = (blocks.abs().amax(1, keepdim=True) / most).half().float()
    return (blocks / scale).round().clamp(-most, most) * scale


def _affine(bits: int, blocks: Tensor) -> Tensor:
    least, most = blocks.amin(1, keepdim=True).clamp(max=0), blocks.amax(1, keepdim=True).clamp(min=0)
    steps = (1 << bits) - 1
    scale = ((most - least) / steps).half().float()
    low = (least / scale).round()
    return (blocks / scale).round().clamp(low, low + steps) * scale


def _quantiles(scheme: Scheme, weights: Tensor) -> Tensor:
    entries = 1 << scheme.bits
    found = []
    for group in weights.split(scheme.group):
        flat = group.flatten()
        table = flat.quantile((torch.arange(entries) + 0.5) / entries).half().float()
        found.append(table[(flat[:, None] - table).abs().argmin(1)].reshape(group.shape))
    return torch.cat(found)
