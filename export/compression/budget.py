"""Which scheme each layer gets, under a budget of size or of noise.

Every layer starts with its cheapest candidate. Upgrades are steps along the lower convex hull of a layer's candidates
(bytes, noise); all layers' steps stand in one order, the most noise saved per byte first, and only beginnings of that
order are considered. What follows:
- a beginning is the Lagrangian optimum of its own size: no assignment of as many bytes or fewer has less noise
  (Everett 1963; Shoham and Gersho 1988, for bits);
- between two beginnings, the best possible saves less than the next step would;
- more budget is a longer beginning, never more noise. Taking later steps that would still fit would break this.
The largest layer is tried with each of its candidates, and the others ordered around it: the head of 0.5B is more than
a quarter of its weights, and as a step that does not fit it would leave that much of a budget unused. The best of
several choices that never get worse never gets worse either.
It does not know where noises come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from export.compression.schemes import Scheme
from export.compression.table import Candidate, Row, Table, total_decibel
from fastvlm.errors import UsageError


@dataclass(frozen=True)
class Assignment:
    """A candidate for every layer."""

    chosen: Mapping[str, Candidate]
    weights: int

    @property
    def bytes(self) -> int:
        """Of all layers, scales and tables included."""
        return sum(candidate.bytes for candidate in self.chosen.values())

    @property
    def bits(self) -> float:
        """Average bits a weight."""
        return 8 * self.bytes / self.weights

    @property
    def decibel(self) -> float:
        """Total noise."""
        return total_decibel(list(self.chosen.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Scheme names by name of the layer, which breaks ties whatever the order of a table."""
        return tuple(self.chosen[layer].scheme.name for layer in sorted(self.chosen))


@dataclass(frozen=True)
class SizeBudget:
    """At most this many bits a weight, on average over all compressed weights, scales and tables included."""

    bits: float

    def allows(self, assignment: Assignment) -> bool:
        """Whether an assignment is small enough."""
        return math.isfinite(self.bits) and assignment.bits <= self.bits

    def cost(self, assignment: Assignment) -> tuple[float, float, tuple[str, ...]]:
        """What the best of the allowed has least of: noise, then size."""
        return assignment.decibel, assignment.bytes, assignment.names

    def unmet(self, assignments: Sequence[Assignment]) -> str:
        """Says what was asked for and what can be had."""
        reach = _range([assignment.bits for assignment in assignments])
        return f"the size budget is {self.bits:g} bits a weight, tables included; this model reaches {reach} bits"


@dataclass(frozen=True)
class QualityBudget:
    """At most this much total noise, in dB relative to the signal: −20 allows 1 %."""

    decibel: float

    def allows(self, assignment: Assignment) -> bool:
        """Whether an assignment is quiet enough."""
        return math.isfinite(self.decibel) and assignment.decibel <= self.decibel

    def cost(self, assignment: Assignment) -> tuple[float, float, tuple[str, ...]]:
        """What the best of the allowed has least of: size, then noise."""
        return assignment.bytes, assignment.decibel, assignment.names

    def unmet(self, assignments: Sequence[Assignment]) -> str:
        """Says what was asked for and what can be had, as a recipe says it: how far the noise is below the signal."""
        reach = _range([assignment.decibel for assignment in assignments], sign=-1)
        return f"the quality budget is snr_db {-self.decibel:g}; this model reaches {reach} dB"


def choose(table: Table, budget: SizeBudget | QualityBudget) -> dict[str, Scheme]:
    """Returns a scheme for every layer of `table`; UsageError, with the reachable range, for what cannot be met."""
    largest = max(table.rows, key=lambda row: (row.weights, row.layer))
    considered: list[Assignment] = []
    for candidate in largest.candidates:
        fixed = [replace(row, candidates=(candidate,)) if row is largest else row for row in table.rows]
        considered += _beginnings(fixed, table.weights)
    allowed = [assignment for assignment in considered if budget.allows(assignment)]
    if not allowed:
        raise UsageError(f"{budget.unmet(considered)}; ask for something in that range")
    best = min(allowed, key=budget.cost)
    return {layer: candidate.scheme for layer, candidate in best.chosen.items()}


def _beginnings(rows: Sequence[Row], weights: int) -> Iterator[Assignment]:
    """Gives the cheapest assignment, and that after each step."""
    hulls = {row.layer: _hull(row.candidates) for row in rows}
    steps = [(_gain(*step), layer, *step) for layer, hull in hulls.items() for step in pairwise(hull)]
    steps.sort(key=lambda step: (-step[0], step[1]))  # stable, and a layer's own gains fall: its order is kept
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    yield Assignment(chosen, weights)
    for _, layer, _, better in steps:
        chosen = {**chosen, layer: better}
        yield Assignment(chosen, weights)


def _hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the lower convex hull by growing bytes: each step saves less noise per byte than the one before."""
    hull: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.bytes, one.decibel, one.scheme.name)):
        if hull and candidate.noise >= hull[-1].noise:
            continue  # costs as much or more and is no better
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], candidate):
            hull.pop()
        hull.append(candidate)
    return hull


def _gain(old: Candidate, new: Candidate) -> float:
    """Noise saved per byte added."""
    return (old.noise - new.noise) / (new.bytes - old.bytes)


def _range(values: Sequence[float], sign: int = 1) -> str:
    """Two decimals, rounded up, so that what a message offers can be had; then the sign, the lesser first."""
    low, high = sorted(sign * math.ceil(value * 100) / 100 for value in (min(values), max(values)))
    return f"{low:.2f} to {high:.2f}"
