"""What compressing each linear layer costs: bytes and noise of every candidate, and which one was chosen.

A row's noise is that of this layer alone; noises of layers are added, as if they were independent. Decibels are rounded
before anything is decided, so that the table in a manifest explains the choice beside it.
It does not know how noise is measured (`sensitivity`) nor how a budget is met (`budget`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.compression.schemes import Scheme

QUIETEST = -200.0  # dB; stands for no noise at all, which has no logarithm


@dataclass(frozen=True)
class Candidate:
    """One scheme for one layer: what it stores, and its noise relative to the signal it is in."""

    scheme: Scheme
    bytes: int  # codes, scales and tables
    decibel: float  # 10·log10 of the noise-to-signal ratio, two decimals

    @property
    def noise(self) -> float:
        """The ratio itself: 0.01 at −20 dB."""
        return float(10.0 ** (self.decibel / 10.0))


@dataclass(frozen=True)
class Row:
    """One linear layer with its candidates; `chosen` is the name of one of them, None before a budget was met."""

    layer: str  # layers.0.self_attn.q_proj …, lm_head
    shape: tuple[int, int]  # (n, K)
    candidates: tuple[Candidate, ...]
    chosen: str | None = None

    @property
    def weights(self) -> int:
        """n · K."""
        return math.prod(self.shape)

    @property
    def choice(self) -> Candidate:
        """The candidate that was chosen; ValueError before."""
        for candidate in self.candidates:
            if candidate.scheme.name == self.chosen:
                return candidate
        raise ValueError(f"nothing was chosen for {self.layer}")

    @property
    def bits(self) -> float:
        """Bits a weight of the choice, scales and tables included."""
        return 8 * self.choice.bytes / self.weights

    def as_json(self) -> dict[str, Any]:
        """Returns the row as a manifest holds it."""
        noise = {candidate.scheme.name: candidate.decibel for candidate in self.candidates}
        return {"layer": self.layer, "scheme": self.chosen, "bits": round(self.bits, 3), "noise_db": noise}


@dataclass(frozen=True)
class Table:
    """All rows, in the order of the decoder; `bits`, `decibel` and `as_json` speak of the choice."""

    rows: tuple[Row, ...]

    @property
    def weights(self) -> int:
        """All compressed weights."""
        return sum(row.weights for row in self.rows)

    @property
    def bits(self) -> float:
        """Average bits a weight: 8 · bytes of all choices / weights."""
        return 8 * sum(row.choice.bytes for row in self.rows) / self.weights

    @property
    def decibel(self) -> float:
        """Total noise: 10·log10 of the sum of the choices' ratios."""
        return total_decibel([row.choice for row in self.rows])

    def with_choice(self, choice: Mapping[str, Scheme]) -> Table:
        """Returns the table with `choice` (every layer -> one of its candidates) entered."""
        return Table(tuple(replace(row, chosen=choice[row.layer].name) for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        """Returns what a manifest records; ValueError before a choice was made."""
        rows = [row.as_json() for row in self.rows]
        return {"bits": round(self.bits, 3), "noise_db": round(self.decibel, 2), "layers": rows}


def decibels(ratio: float) -> float:
    """Returns 10·log10 of a noise-to-signal ratio, two decimals, QUIETEST at least."""
    return round(max(10.0 * math.log10(ratio), QUIETEST), 2) if ratio > 0.0 else QUIETEST


def total_decibel(chosen: Sequence[Candidate]) -> float:
    """Returns the noise of several layers together, in dB, not rounded; `fsum`, so that order does not count."""
    return 10.0 * math.log10(math.fsum(candidate.noise for candidate in chosen))
