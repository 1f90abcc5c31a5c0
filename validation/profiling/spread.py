"""What is told of many runs: the median, and how far the others lie from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """Runs of one thing: median, quartiles and ends, all in the unit of the runs; count: how many there were."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value; quartiles lie between the values, never beyond them."""
        if len(values) > 1:
            q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        else:
            q1 = median = q3 = values[0]
        return cls(median, q1, q3, min(values), max(values), len(values))

    def overlaps(self, other: Spread) -> bool:
        """Whether the middle halves of both have a value in common: then no difference between them is shown."""
        return self.q1 <= other.q3 and other.q1 <= self.q3

    def as_json(self) -> dict[str, float | int]:
        """The same as plain data, in four digits."""
        return {name: value if name == "count" else digits(value) for name, value in asdict(self).items()}


def digits(value: float) -> float:
    """A measured number in four digits: more are noise."""
    return float(f"{value:.4g}")
