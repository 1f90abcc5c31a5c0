"""The worst row of two tensors: a fault of one row of thousands is large there, and lost in the whole.

A row's signal counts as its floor at least, so that where nothing is expected the error itself is judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Worst:
    """The row with the least SNR, in dB, and its largest error: where it is, what was found, what was expected."""

    snr_db: float
    index: tuple[int, ...]
    program: float
    reference: float


def worst_row(expected: Tensor, actual: Tensor, rows: tuple[int, ...], floor: float) -> Worst:
    """Compares two tensors of one shape row by row; `rows` are the axes along which rows are told apart.

    floor: root mean square that a row's signal counts as at least. −inf where either holds what is no number.
    """
    signal = expected.double()
    error = actual.double() - signal
    along = [axis for axis in range(error.ndim) if axis not in rows]
    noise = error.square().mean(along, keepdim=True) if along else error.square()
    if not bool(torch.isfinite(noise).all()):  # no square of a float32's overflows
        return _at(-math.inf, (~torch.isfinite(error)).int(), expected, actual)
    power = (signal.square().mean(along, keepdim=True) if along else signal.square()).clamp_min(floor**2)
    ratio = noise / power
    worst = float(ratio.max())
    inside = torch.where(ratio == ratio.max(), error.abs(), -torch.ones(()))
    return _at(math.inf if worst == 0 else -10 * math.log10(worst), inside, expected, actual)


def farthest(expected: Tensor, actual: Tensor) -> Worst:
    """Returns where two tensors of one shape differ most; its SNR says nothing."""
    return _at(math.nan, (actual - expected).abs(), expected, actual)


def _at(snr: float, sizes: Tensor, expected: Tensor, actual: Tensor) -> Worst:
    place = torch.unravel_index(sizes.argmax(), sizes.shape)
    index = tuple(int(each) for each in place)
    return Worst(snr, index, float(actual[index]), float(expected[index]))
