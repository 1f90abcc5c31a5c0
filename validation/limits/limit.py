"""A row of the table of limits, a value held against it, and the five rungs that rows belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastvlm.manifest import significant

# From what no output shows to what a user reads. A fault is caught by the rung that looks at what it changes.
RUNGS = ("constants", "ops", "blocks", "network", "tokens")
_RUNG_OF = {
    "audit": "constants", "embeddings": "constants", "manifest": "constants", "op": "ops",
    "blocks": "blocks", "encoder_blocks": "blocks", "language_blocks": "blocks",
    "preprocess": "tokens", "prompt": "tokens", "tokenizer": "tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """One row: `metric` of `quantity` must be at least (`min`) or at most (`max`) `limit`."""

    quantity: str
    metric: str
    bound: Literal["min", "max"]
    limit: float
    measured: float  # the worst value on the embedded checkpoint
    reason: str

    @property
    def key(self) -> str:
        """`quantity.metric`, the name by which tests and reports speak of this row."""
        return f"{self.quantity}.{self.metric}"

    @property
    def rung(self) -> str:
        """Which of `RUNGS` measures it."""
        return "tokens" if self.metric == "divergences" else _RUNG_OF.get(self.quantity, "network")

    @property
    def words(self) -> str:
        """The limit as tables show it: "≥ 60" or "≤ 5e-05"."""
        return in_words(self.bound, self.limit)

    def holds(self, value: float) -> bool:
        """Returns whether `value` is good; NaN never is."""
        return value >= self.limit if self.bound == "min" else value <= self.limit


def in_words(bound: str, limit: float) -> str:
    """Returns how a limit is shown: "≥ 60" for a `min`, "≤ 5e-05" for a `max`."""
    return f"{'≥' if bound == 'min' else '≤'} {limit:g}"


@dataclass(frozen=True)
class Measurement:
    """One value held against its row of the table; `subject` says which picture or prompt was worst."""

    limit: Limit
    value: float
    subject: str

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.limit.holds(self.value)

    def as_json(self) -> dict[str, object]:
        """The row as `validation.json` and `--json` show it, numbers to three significant digits."""
        return {
            "quantity": self.limit.quantity,
            "metric": self.limit.metric,
            "bound": self.limit.bound,
            "limit": self.limit.limit,
            "value": storable(self.value),
            "subject": self.subject,
            "passed": self.passed,
            "rung": self.limit.rung,
            "reason": self.limit.reason,
        }


def storable(value: float) -> float | str:
    """Returns `value` to three significant digits; inf, -inf and nan as words, which JSON numbers cannot say."""
    return significant(value) if math.isfinite(value) else str(value)
