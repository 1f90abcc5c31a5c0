"""The rows of `benchmarks/export.py`, and the limits that the design sets for them.

A target holds for a row of a checkpoint of official size, whatever machine it is measured on; seconds are elapsed, so
a busy machine misses some that an idle one meets. What was not measured is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FP16 = "fp16"
SCHEMES = (FP16, "int8", "lut4", "lut6", "int4", "mixed")
EVERYTHING = "everything"
TITLES = {
    "encoder-one": "encoder, one size",
    "encoder-two": "encoder, two sizes",
    "language": "language model, both functions",
    EVERYTHING: "everything, 1024 + 1152",
}
PARTS = {"encoder-one": ("encoder",), "encoder-two": ("encoder",), "language": ("language", "embeddings")}
OFFICIAL = ("0.5b", "1.5b", "7b", "vicuna-7b")
LARGE = ("7b", "vicuna-7b")
UNITS = {"seconds": (1.0, "s"), "memory": (1e9, "GB of memory"), "disk": (1e9, "GB on disk"), "ratio": (1.0, "× fp16")}


@dataclass(frozen=True)
class Row:
    """One thing to make: a key of `TITLES`, and of everything also the scheme of the language model."""

    key: str
    scheme: str = FP16

    @property
    def title(self) -> str:
        """What the table calls it."""
        return TITLES[self.key] if self.scheme == FP16 else f"everything, {self.scheme}"

    def weights(self, parts: Mapping[str, int]) -> int:
        """Returns the bytes that its weights take in fp16; `parts`: those of encoder, language and embeddings."""
        return sum(parts[part] for part in PARTS.get(self.key, tuple(parts)))


def rows_of(keys: tuple[str, ...], schemes: tuple[str, ...]) -> list[Row]:
    """Returns the rows in order; the schemes are those of everything, the other rows are fp16."""
    single = [Row(key) for key in TITLES if key in keys and key != EVERYTHING]
    return single + [Row(EVERYTHING, scheme) for scheme in SCHEMES if scheme in schemes and EVERYTHING in keys]


@dataclass(frozen=True)
class Target:
    """`metric` of that row is at most `limit`: seconds, bytes, or seconds over those of fp16.

    sizes: of the checkpoints that it holds for; schemes: of everything, none means any.
    """

    key: str
    sizes: tuple[str, ...]
    metric: str  # "seconds" | "memory" | "disk" | "ratio"
    limit: float
    schemes: tuple[str, ...] = (FP16,)

    def holds_for(self, row: Row, size: str | None) -> bool:
        """Whether it speaks of this row of a checkpoint of this size."""
        return row.key == self.key and size in self.sizes and (not self.schemes or row.scheme in self.schemes)


TARGETS = (
    Target("encoder-one", OFFICIAL, "seconds", 15),
    Target("encoder-one", OFFICIAL, "memory", 1.5e9),
    Target("encoder-two", OFFICIAL, "seconds", 2 * 15),
    Target("encoder-two", OFFICIAL, "memory", 1.5e9),
    Target("language", ("0.5b",), "seconds", 20),
    Target("language", ("0.5b",), "memory", 2e9),
    Target("language", LARGE, "memory", 4e9),
    Target(EVERYTHING, ("0.5b",), "seconds", 60),
    Target(EVERYTHING, ("0.5b",), "memory", 2.5e9),
    Target(EVERYTHING, ("0.5b",), "ratio", 1.5, ("int8",)),
    Target(EVERYTHING, ("0.5b",), "disk", 0.92e9, ("int8",)),
    Target(EVERYTHING, ("0.5b",), "seconds", 5 * 60, ("lut4", "lut6")),
    Target(EVERYTHING, LARGE, "memory", 4e9, ()),
    Target(EVERYTHING, LARGE, "seconds", 8 * 60, ("int4",)),
)


@dataclass(frozen=True)
class Judgement:
    """One target beside what was measured."""

    target: Target
    value: float

    @property
    def met(self) -> bool:
        """Whether the measured value is within the limit; NaN is not."""
        return self.value <= self.target.limit

    @property
    def text(self) -> str:
        """The table's cell: `≤ 15 s ok`."""
        return f"{_limit(self.target)} {'ok' if self.met else 'MISSED'}"

    @property
    def told(self) -> str:
        """The line of what was missed: `17.21 s, target ≤ 15 s`."""
        scale, unit = UNITS[self.target.metric]
        return f"{self.value / scale:.2f} {unit}, target {_limit(self.target)}"


def judged(row: Row, size: str | None, found: Mapping[str, float | None]) -> Iterator[Judgement]:
    """Yields the targets of a row; `found`: seconds, memory, disk, and the ratio to fp16, or None without one."""
    for target in TARGETS:
        value = found.get(target.metric)
        if value is not None and target.holds_for(row, size):
            yield Judgement(target, value)


def _limit(target: Target) -> str:
    scale, unit = UNITS[target.metric]
    return f"≤ {target.limit / scale:g} {unit}"
