"""Palettes: the 16 or 64 fp16 values that stand for the weights of 32 output channels with the least weighted error.

In one dimension the clusters of k-means are intervals of the sorted weights, so a palette is k − 1 cuts, and with
prefix sums of importance and of importance · weight the worth of an interval costs a subtraction. Lloyd's iteration
moves each cut to where its neighbours pull it and stays in the next valley: with heavy tails that costs whole decibels.
Here all cuts of a group move together: each may go to a few dozen places between its neighbours and beyond them, and
dynamic programming finds the best of all combinations, first far and coarse, then near and fine. The result is within
two thousandths of a decibel of the optimum (Wu's exact program, Wu 1991, which coremltools calls by kmeans1d) in a
tenth of its time or less (benchmarks/compression.py). The palette is rounded to fp16 before the codes are chosen.
Equal weights are ordered by their place.
It knows neither calibration nor files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.compression.schemes import Scheme
from export.compression.stored import Codes

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

VALUES = 1 << 19  # of one batch of groups: its prefix sums take 8 MB
# (places to each side of a cut, distance between them as a part of the distance between cuts). Four intervals to each
# side find what is many valleys away; one thirty-second is fine enough that a better valley looks better; the last
# passes settle. Chosen by the loss against the optimum on Gaussian, Student-t and mixed rows.
PASSES = (
    *[(8, 1 / 2)] * 3, *[(16, 1 / 8)] * 3, *[(32, 1 / 16)] * 2, (32, 1 / 32),
    (4, 0.06), (4, 0.03), (4, 0.015), (4, 0.007),
)  # fmt: skip
POLISH = 2  # Lloyd's iterations at the end: no place is finer than a weight
SLICE = 8  # weights of which a density is taken


@dataclass(frozen=True)
class Sorted:
    """Weights of G groups of n, sorted: what the cuts are judged by.

    values: (G, n) float32 ascending; order: (G, n), where each came from; mass, moment: (G, n + 1) float64, the sums
    of importance and of importance · weight before each place.
    """

    values: NDArray[np.float32]
    order: Ints
    mass: Doubles
    moment: Doubles


def compress_palette(scheme: Scheme, rows: Tensor, importance: Tensor | None) -> Codes:
    """Compresses rows (n, K, ...) float32, n a multiple of the scheme's group; importance (K,) with mean 1 or None."""
    entries = 1 << scheme.bits
    groups = rows.reshape(len(rows) // scheme.group, -1).numpy()  # (G, 32·K·...)
    weights = None if importance is None else _repeated(importance, rows, scheme.group)
    codes = np.empty(groups.shape, np.uint8)
    luts = np.empty((len(groups), entries), np.float16)
    batch = max(1, VALUES // groups.shape[1])
    for start in range(0, len(groups), batch):
        part = slice(start, start + batch)
        ordered = _sorted(groups[part], weights)
        luts[part] = _palettes(ordered, entries)
        _assign(ordered, luts[part].astype(np.float32), codes[part])
    shape = scheme.table_shapes(tuple(rows.shape))["lut"]
    return Codes(torch.from_numpy(codes).reshape(rows.shape), {"lut": torch.from_numpy(luts).reshape(shape)})


def _repeated(importance: Tensor, rows: Tensor, group: int) -> NDArray[np.float32]:
    """The importance of every weight of one group, flat, in the order of the rows."""
    column = importance.reshape(-1, *[1] * (rows.ndim - 2))
    flat: NDArray[np.float32] = column.expand(group, *rows.shape[1:]).reshape(-1).numpy()
    return flat


def _sorted(groups: NDArray[np.float32], weights: NDArray[np.float32] | None) -> Sorted:
    """Sorts each group (G, n) by value and place; one after the other, so that the work stays in the cache."""
    count, length = groups.shape
    values, order = np.empty((count, length), np.float32), np.empty((count, length), np.int64)
    mass, moment = np.zeros((count, length + 1)), np.zeros((count, length + 1))
    places = np.arange(length)
    for row, group in enumerate(groups):
        order[row] = _order(group, places)
        values[row] = group[order[row]]
        if weights is None:
            mass[row, 1:] = places + 1
            np.cumsum(values[row], dtype=np.float64, out=moment[row, 1:])
        else:
            weight = weights[order[row]].astype(np.float64)
            np.cumsum(weight, out=mass[row, 1:])
            np.cumsum(weight * values[row], out=moment[row, 1:])
    return Sorted(values, order, mass, moment)


def _order(group: NDArray[np.float32], places: Ints) -> Ints:
    """The places (n,) in the order of value and place: both go into one int64, whose sort is vectorised, without ties.

    A float's bits are in the order of its value once those behind a minus sign are turned over.
    """
    bits = group.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    keys |= places
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _palettes(ordered: Sorted, entries: int) -> NDArray[np.float16]:
    """The palettes (G, entries) fp16, ascending; entries that nothing needs repeat their neighbour."""
    cuts = _first_cuts(ordered, entries)
    for reach, step in PASSES:
        cuts = _moved(ordered, _places(cuts, reach, step))
    centres = _centres(ordered, cuts)
    for _ in range(POLISH):
        centres = _centres(ordered, _cuts_between(ordered, centres))
    return centres.astype(np.float16)


def _first_cuts(ordered: Sorted, entries: int) -> Ints:
    """Cuts (G, entries + 1) at equal shares of density^⅓, the best spacing for fine palettes (Panter and Dite 1951).

    The density comes from the widths of slices of equal mass.
    """
    length = ordered.values.shape[1]
    slices = max(4 * entries, length // SLICE)
    cuts = np.empty((len(ordered.values), entries + 1), np.int64)
    for row, (values, mass) in enumerate(zip(ordered.values, ordered.mass, strict=True)):
        edges = np.searchsorted(mass, np.linspace(0, mass[-1], slices + 1)).clip(0, length)
        widths = np.diff(values[np.minimum(edges, length - 1)].astype(np.float64))
        shares = np.concatenate(([0.0], np.cumsum(np.cbrt(widths) ** 2 + 1e-30)))  # density^⅓ · width
        cuts[row] = np.round(np.interp(np.linspace(0, shares[-1], entries + 1), shares, edges))
    cuts[:, 0], cuts[:, -1] = 0, length
    return cuts


def _places(cuts: Ints, reach: int, step: float) -> Ints:
    """Where each cut (G, k + 1) may go, (G, k + 1, P), P = 2·reach + 1: every `step` of a distance, by one at least."""
    last = cuts.shape[1] - 1
    offsets = np.arange(-reach, reach + 1)
    where = (np.arange(last + 1)[:, None] + step * offsets).clip(0, last)
    low = np.minimum(where.astype(np.int64), last - 1)
    places = cuts[:, low] + np.round((where - low) * (cuts[:, low + 1] - cuts[:, low])).astype(np.int64)
    least = cuts[:, :, None] + offsets
    places = np.where(offsets > 0, np.maximum(places, least), np.minimum(places, least)).clip(0, cuts[:, -1:, None])
    places[:, 0], places[:, -1] = cuts[:, :1], cuts[:, -1:]
    return places


def _moved(ordered: Sorted, places: Ints) -> Ints:
    """The best of all ways to put each cut at one of its places (G, k + 1, P), by dynamic programming.

    An interval saves (Σ h·w)² / Σ h of the error Σ h·w² that no palette would leave. An empty one divides 0 by almost
    nothing and saves 0; one that ends before it begins divides by almost nothing below 0: it is never taken.
    """
    mass, moment = (_at(sums, places).transpose(1, 0, 2).copy() for sums in (ordered.mass, ordered.moment))
    steps, groups, count = mass.shape[0] - 1, *mass.shape[1:]
    total = np.zeros((groups, 1, count))
    came = np.empty((steps, groups, count), np.int64)
    weight, saved = np.empty((groups, count, count)), np.empty((groups, count, count))  # (G, to, from)
    for step in range(steps):
        np.subtract(mass[step + 1][:, :, None], mass[step][:, None, :], out=weight)
        np.subtract(moment[step + 1][:, :, None], moment[step][:, None, :], out=saved)
        np.maximum(weight, -1e-200, out=weight)
        weight += 1e-250
        saved *= saved
        saved /= weight
        saved += total
        saved.argmax(2, out=came[step])
        total = np.take_along_axis(saved, came[step][:, :, None], 2).transpose(0, 2, 1)
    return _traced(places, came, total[:, 0].argmax(1))


def _traced(places: Ints, came: Ints, last: Ints) -> Ints:
    """The cuts (G, k + 1) that lead to place `last` (G,) of the last cut; came (k, G, P): the place before each."""
    row, at = np.arange(len(places)), last
    path = [places[row, -1, at]]
    for step in reversed(range(len(came))):
        at = came[step][row, at]
        path.append(places[row, step, at])
    return np.stack(path[::-1], 1)


def _at(sums: Doubles, places: Ints) -> Doubles:
    """sums (G, n + 1) at places (G, ...)."""
    found = np.take_along_axis(sums, places.reshape(len(places), -1), 1)
    return found.reshape(places.shape)


def _centres(ordered: Sorted, cuts: Ints) -> Doubles:
    """The weighted means (G, k) between cuts (G, k + 1), ascending; an empty cluster takes a neighbour's."""
    mass, moment = np.diff(_at(ordered.mass, cuts)), np.diff(_at(ordered.moment, cuts))
    full = mass > 0
    means = np.where(full, moment / np.where(full, mass, 1.0), -np.inf)
    means = np.maximum.accumulate(means, axis=1)
    first = np.take_along_axis(means, full.argmax(1)[:, None], 1)  # of the first that is not empty
    centres: Doubles = np.where(np.isneginf(means), first, means)
    return centres


def _cuts_between(ordered: Sorted, centres: NDArray[np.floating]) -> Ints:
    """Cuts (G, k + 1) where each weight is nearest to its centre: half way between neighbours."""
    middles = (centres[:, 1:].astype(np.float64) + centres[:, :-1]) / 2
    cuts = np.zeros((len(centres), centres.shape[1] + 1), np.int64)
    for row, values in enumerate(ordered.values):
        cuts[row, 1:-1] = np.searchsorted(values, middles[row])
    cuts[:, -1] = ordered.values.shape[1]
    return cuts


def _assign(ordered: Sorted, luts: NDArray[np.float32], codes: NDArray[np.uint8]) -> None:
    """Writes into codes (G, n) which entry of its rounded palette (G, k) is nearest to each weight."""
    entries = np.arange(luts.shape[1], dtype=np.uint8)
    for cuts, order, row in zip(_cuts_between(ordered, luts), ordered.order, codes, strict=True):
        row[order] = np.repeat(entries, np.diff(cuts))
