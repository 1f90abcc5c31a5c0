"""Which scheme each weight of `mixed` gets: the least error for the bytes that a budget allows.

With `bits`, every weight starts with its smallest scheme; then, again and again, the step to a larger scheme that takes
the most error away per byte is made, as long as the bytes last. Steps of one weight are taken along the lower convex
hull of (bytes, error), so the greedy way is the best up to the last step (Shoham and Gersho 1988). With `snr_db`, each
weight gets its smallest scheme that keeps that much, and fp16 where none does.
Errors come measured, in a unit in which those of different weights may be added. It compresses nothing itself.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

from export.compression.recipe import Budget
from export.compression.schemes import HALF_BYTES, SCHEMES, Scheme, Shape
from fastvlm.errors import UsageError


@dataclass(frozen=True)
class Measured:
    """What one scheme costs a weight: `error`, comparable between weights, and its own `snr_db`."""

    error: float
    snr_db: float


def choose(
    budget: Budget, shapes: Mapping[str, Shape], measured: Mapping[str, Mapping[str, Measured]]
) -> dict[str, Scheme | None]:
    """Returns the scheme of each weight that `measured` names, None for fp16.

    measured: weight -> scheme's name -> what it costs. UsageError when the budget is below what the smallest take.
    """
    if budget.kind == "snr_db":
        return {name: _smallest(shapes[name], found, budget.value) for name, found in measured.items()}
    return _within(budget.value, {name: _hull(shapes[name], found) for name, found in measured.items()}, shapes)


def _smallest(shape: Shape, found: Mapping[str, Measured], snr_db: float) -> Scheme | None:
    good = [SCHEMES[name] for name, cost in found.items() if cost.snr_db >= snr_db]
    return min(good, key=lambda scheme: scheme.bytes(shape), default=None)


Step = tuple[int, float, Scheme | None]  # bytes, error, scheme


def _hull(shape: Shape, found: Mapping[str, Measured]) -> list[Step]:
    """The steps from the smallest scheme to fp16 on the lower convex hull of bytes and error."""
    points: list[Step] = [(SCHEMES[name].bytes(shape), cost.error, SCHEMES[name]) for name, cost in found.items()]
    points.append((math.prod(shape) * HALF_BYTES, 0.0, None))
    hull: list[Step] = []
    for point in sorted(points, key=lambda step: step[:2]):
        if hull and hull[-1][1] <= point[1]:
            continue  # more bytes for no less error
        while len(hull) > 1 and _gain(*hull[-2:]) <= _gain(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _gain(before: Step, after: Step) -> float:
    """Error that goes away per byte."""
    return (before[1] - after[1]) / (after[0] - before[0])


def _within(bits: float, steps: dict[str, list[Step]], shapes: Mapping[str, Shape]) -> dict[str, Scheme | None]:
    weights = sum(math.prod(shapes[name]) for name in steps)
    left = bits * weights / 8 - sum(hull[0][0] for hull in steps.values())
    if left < 0:
        least = 8 * (bits * weights / 8 - left) / weights
        raise UsageError(
            f"budget: bits is {bits:g}, these weights take {least:.3f} at least; write {{bits: {least + 0.01:.2f}}}"
        )
    at = dict.fromkeys(steps, 0)
    queue = [(-_gain(*hull[:2]), name) for name, hull in steps.items() if len(hull) > 1]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        hull, place = steps[name], at[name]
        cost = hull[place + 1][0] - hull[place][0]
        if cost > left:
            continue  # a smaller weight may still fit
        left -= cost
        at[name] += 1
        if place + 2 < len(hull):
            heapq.heappush(queue, (-_gain(*hull[place + 1 : place + 3]), name))
    return {name: hull[at[name]][2] for name, hull in steps.items()}
