"""What an audit finds, gathered under the rows of the table of limits that it belongs to; nothing is raised.

A count stands for how much differs, a sentence for where it first does. It knows neither programs nor weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from validation.limits import Limit, Measurement, worst

WEIGHTS, CONSTANTS, UNEXPLAINED = "audit.differing_weights", "audit.differing_constants", "audit.unexplained"
NOUNS = {WEIGHTS: "numbers", CONSTANTS: "arguments of ops", UNEXPLAINED: "ops and parameters"}


@dataclass
class Findings:
    """Everything that one build's audit found, in the order in which it was met.

    counts: by row and sentence, how many values or constants it speaks of. looked_at: how many there were by row.
    extremes: by row and subject, what was measured of compressed weights.
    """

    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    looked_at: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NOUNS, 0))
    extremes: dict[str, dict[str, float]] = field(default_factory=dict)

    def look(self, key: str, count: int = 1) -> None:
        """Notes that `count` things were held against row `key`."""
        self.looked_at[key] = self.looked_at.get(key, 0) + count

    def count(self, key: str, sentence: str, count: int = 1) -> None:
        """Adds `count` to row `key`; `sentence` names where, what was found and what was expected."""
        row = self.counts.setdefault(key, {})
        row[sentence] = row.get(sentence, 0.0) + count

    def measure(self, key: str, subject: str, value: float) -> None:
        """Keeps a value of row `key`."""
        self.extremes.setdefault(key, {})[subject] = value

    def measurements(self, limits: Mapping[str, Limit]) -> Iterator[Measurement]:
        """Gives one measurement for each row that was looked at: all that was counted, under the first sentence."""
        for key, looked_at in self.looked_at.items():
            found = self.counts.get(key, {})
            subject = next(iter(found), f"all {looked_at:,} {NOUNS[key]}")
            yield worst(key, {subject: sum(found.values())}, limits)
        for key, values in self.extremes.items():
            yield worst(key, values, limits)
