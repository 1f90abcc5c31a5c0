"""Weights stored in fewer bits against the checkpoint's: is each code the nearest, do scales and palettes fit?

A scale or a palette cannot be worked out again, because an export chooses it by what inputs a layer had. But whatever
inputs there were:

| what | holds for |
|---|---|
| `excess` | every weight: its code is the one whose value is nearest; in steps to the next value, beyond half a step |
| `misfit` | scales and palettes: weights use all of their values, and few lie outside what they reach |
| `snr_db` | a layer as a whole: what is left of its weights |

The last two see wrong tables whose codes were chosen for them: twice too large they leave up to half of their values
idle, half as large they clip weights. The first sees every code, and all tables that codes were not chosen for.
Work goes block by block of rows in float32, exact to 1e-5 of a step.
It knows no programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log10

import numpy as np
import torch
from torch import Tensor

from export.compression.schemes import Scheme
from export.parameters import GraphWeight

FP16_MAX = 65504.0
FINE = 2.0**-14  # below it fp16 has fewer bits: a scale is rounded by so much that codes may be idle

Part = Callable[[int, int], np.ndarray]  # codes, flat: from the first, so many
Tables = Mapping[str, Tensor]


@dataclass
class Fit:
    """How the stored form of one weight fits the checkpoint's.

    excess: of the worst weight, number `at`. unreached: the share of its values that no weight uses, summed over
    `tables` scales or palettes. clipped, weights: counts. signal, noise: sums of squares.
    """

    excess: float = 0.0
    at: int = 0
    unreached: float = 0.0
    tables: int = 0
    clipped: int = 0
    weights: int = 0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def misfit(self) -> float:
        """The mean share of a table's values that no weight uses, and the share of weights beyond its reach."""
        return self.unreached / max(1, self.tables) + self.clipped / max(1, self.weights)

    @property
    def snr_db(self) -> float:
        """Signal to noise of the whole weight in dB; nan where something is no number."""
        if self.noise == 0:
            return inf
        ratio = self.signal / self.noise
        return 10 * log10(ratio) if ratio > 0 else -inf if ratio == 0 else ratio

    def take(self, values: Tensor, away: Tensor, loose: Tensor, steps: Tensor, outside: Tensor, idle: Tensor) -> None:
        """Adds a block: its weights and how far they are from what is stored.

        loose: which of them, flat, lie beyond half a step; steps, outside: how far, and whether no value is there.
        """
        excess = (steps - 0.5).masked_fill(outside, 0.0)
        if len(loose) and self.excess == self.excess:  # a NaN stays
            at = int(excess.argmax())  # of NaN, where there is one
            worst = float(excess[at])
            if not worst <= self.excess:
                self.excess, self.at = worst, self.weights + int(loose[at])
        self.unreached, self.tables = self.unreached + float(idle.sum()), self.tables + idle.numel()
        self.clipped, self.weights = self.clipped + int(outside.sum()), self.weights + values.numel()
        flat, lost = values.reshape(-1), away.reshape(-1)
        self.signal, self.noise = self.signal + float(flat.dot(flat)), self.noise + float(lost.dot(lost))


def fit_of(weight: GraphWeight, scheme: Scheme, part: Part, tables: Mapping[str, np.ndarray]) -> Fit:
    """Returns how stored codes and tables ("scale" and "offset", or "lut") of `scheme`'s shapes fit a weight.

    TensorError where the checkpoint's weight is no number.
    """
    fit, row = Fit(), 0
    judge, group = (_palettes, scheme.group) if scheme.kind == "palette" else (_scales, 1)
    whole = {
        name: torch.from_numpy(np.array(table)).reshape(weight.shape[0] // group, -1) for name, table in tables.items()
    }
    for block in weight.blocks({}):
        values = block.reshape(len(block), -1)
        codes = torch.from_numpy(part(fit.weights, values.numel())).reshape(values.shape)
        rows = slice(row // group, (row + len(values)) // group)
        judge(fit, scheme, values, codes, {name: table[rows].float() for name, table in whole.items()})
        row += len(values)
    return fit


def _scales(fit: Fit, scheme: Scheme, rows: Tensor, codes: Tensor, tables: Tables) -> None:
    """Rows (n, K) of which `scale · (code − offset)` is stored, a scale (n, blocks) for each block."""
    scale = tables["scale"][..., None]
    shape = (*scale.shape[:2], -1)
    values, code = rows.reshape(shape), codes.float().reshape(shape)
    half = 1 << scheme.bits - 1
    low, high = -half, half - 1
    offset = tables["offset"][..., None] if scheme.affine else torch.zeros_like(scale)
    steps = (values / scale).add_(offset).sub_(code)  # from the code's value to the weight
    loose = _flat_where(~(steps.abs() <= 0.5))
    beyond, held, by, zero = (_picked(each, loose, values) for each in (steps, code, scale, offset))
    multiple, most = held - zero, (FP16_MAX / by).floor()  # larger multiples are never stored
    outside = torch.where(beyond > 0, (held == high) | (multiple >= most), (held == low) | (multiple <= -most))
    least, largest = torch.aminmax(code, dim=2)
    if scheme.affine:
        reached = (torch.maximum(largest, tables["offset"]) - torch.minimum(least, tables["offset"])) / (high - low)
    else:
        reached = torch.maximum(-least, largest) / high
    idle = (1 - reached.clamp(max=1))[tables["scale"] >= FINE]
    fit.take(values, steps.mul_(scale), loose, beyond.abs(), outside, idle)


def _palettes(fit: Fit, scheme: Scheme, rows: Tensor, codes: Tensor, tables: Tables) -> None:
    """Rows (n, K) of which entries are stored, a palette (G, entries) for each group of rows."""
    palette = tables["lut"]
    values, code = rows.reshape(len(palette), -1), codes.reshape(len(palette), -1).long()
    below, above = _gaps(palette)
    inner = torch.minimum(below, above)  # of an entry at an end, the only one
    room = [torch.where(gap.isinf(), inner, gap) / 2 for gap in (below, above)]
    away = values - palette.gather(1, code)
    loose = _flat_where(~((away <= room[1].gather(1, code)) & (-away <= room[0].gather(1, code))))
    entry = torch.div(loose, values.shape[1], rounding_mode="floor") * palette.shape[1] + code.reshape(-1)[loose]
    beyond = away.reshape(-1)[loose]
    gap = torch.where(beyond > 0, above.reshape(-1)[entry], below.reshape(-1)[entry])
    used = torch.zeros_like(palette).scatter_(1, code, 1.0)
    lossy = away.abs().amax(1) > 0  # a group of fewer values than entries may leave some idle
    fit.take(values, away, loose, beyond.abs() / gap, gap.isinf(), 1 - used[lossy].mean(1))


def _flat_where(mask: Tensor) -> Tensor:
    return mask.reshape(-1).nonzero().reshape(-1)


def _picked(table: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """What a table (n, blocks, size or 1) has at flat places of values (n, blocks, size)."""
    return table.reshape(-1)[at if table.shape == values.shape else at // values.shape[-1]]


def _gaps(palette: Tensor) -> tuple[Tensor, Tensor]:
    """How far it is from each entry (G, entries) to the next smaller and to the next larger value; inf at the ends."""
    ordered, order = palette.sort(1)
    near = []
    for turned in (ordered, -ordered.flip(1)):
        before = torch.full_like(turned, -torch.inf)
        for place in range(1, turned.shape[1]):
            last = turned[:, place - 1]
            before[:, place] = torch.where(turned[:, place] > last, last, before[:, place - 1])
        near.append(turned - before)
    back = order.argsort(1)
    return near[0].gather(1, back), near[1].flip(1).gather(1, back)
