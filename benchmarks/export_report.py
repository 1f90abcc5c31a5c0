"""What `benchmarks/export.py` measured: medians, ratios, the table, the missed targets, the JSON.

A record is what JSON holds of one checkpoint, and what table, plot and list of the missed are made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from export_targets import FP16, Judgement, Row, judged


@dataclass(frozen=True)
class Figures:
    """One run of one route: seconds elapsed, CPU seconds, bytes of memory at most, bytes on disk."""

    seconds: float
    cpu: float
    memory: float
    disk: float

    @property
    def line(self) -> str:
        """As columns of the table."""
        return f"{self.seconds:8.1f} {self.cpu:8.1f} {self.memory / 1e9:8.2f} {self.disk / 1e9:8.3f}"


HEAD = f"{'row':<30} {'route':<6} {'seconds':>8} {'CPU s':>8} {'peak GB':>8} {'disk GB':>8}   × fp16  × stock  targets"


@dataclass
class Measured:
    """One row: its weights in bytes of fp16, the rounds of both routes, and why one is missing."""

    row: Row
    weights: int
    ours: list[Figures] = field(default_factory=list)
    stock: list[Figures] = field(default_factory=list)
    failed: str | None = None
    left_out: str | None = None


def medians(rounds: Sequence[Figures]) -> Figures | None:
    """Of each number on its own; None without a round."""
    if not rounds:
        return None
    return Figures(*(median(values) for values in zip(*(asdict(one).values() for one in rounds), strict=True)))


def ratio(rounds: Sequence[Figures], others: Sequence[Figures]) -> float | None:
    """The median of the rounds' ratios of seconds, None where either lacks a round."""
    if not rounds or len(rounds) != len(others):
        return None
    return median(one.seconds / other.seconds for one, other in zip(rounds, others, strict=True))


def as_json(name: str, facts: dict[str, Any], results: Sequence[Measured]) -> dict[str, Any]:
    """Returns the record of one checkpoint; `facts` as `export_routes.facts` gives them."""
    plain = {result.row.key: result.ours for result in results if result.row.scheme == FP16}
    rows = [_row(result, plain.get(result.row.key, []), facts["size"]) for result in results]
    return {"name": name, "size": facts["size"], "weights": facts["weights"], "rows": rows}


def _row(result: Measured, plain: Sequence[Figures], size: str | None) -> dict[str, Any]:
    ours, stock = medians(result.ours), medians(result.stock)
    to_fp16 = None if result.row.scheme == FP16 else ratio(result.ours, plain)
    found = {} if ours is None else asdict(ours) | {"ratio": to_fp16}
    return {
        "key": result.row.key, "scheme": result.row.scheme, "title": result.row.title, "weights": result.weights,
        "ours": asdict(ours) if ours else None, "stock": asdict(stock) if stock else None,
        "rounds": {"ours": [asdict(one) for one in result.ours], "stock": [asdict(one) for one in result.stock]},
        "failed": result.failed, "left_out": result.left_out,
        "to_fp16": to_fp16, "to_stock": ratio(result.ours, result.stock),
        "targets": [_target(judgement) for judgement in judged(result.row, size, found)],
    }  # fmt: skip


def _target(judgement: Judgement) -> dict[str, Any]:
    target = judgement.target
    return {
        "metric": target.metric, "limit": target.limit, "value": judgement.value, "met": judgement.met,
        "text": judgement.text, "told": judgement.told,
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Returns the lines of one checkpoint."""
    parts = ", ".join(f"{part} {size / 1e9:.3g}" for part, size in record["weights"].items())
    title = f"{record['name']}: {record['size'] or 'no official size'}, GB of fp16 weights: {parts}"
    return "\n".join([title, HEAD, *(line for row in record["rows"] for line in _lines(row)), ""])


def _lines(row: dict[str, Any]) -> Iterator[str]:
    if row["ours"]:
        cells = "  ".join(
            f"{'' if value is None else f'{value:.2f}':>7}" for value in (row["to_fp16"], row["to_stock"])
        )
        targets = ", ".join(target["text"] for target in row["targets"])
        yield f"{row['title']:<30} {'ours':<6} {Figures(**row['ours']).line}  {cells}  {targets}".rstrip()
    if row["failed"]:
        yield f"{row['title']:<30} {'ours':<6}   FAILED: {row['failed']}"
    if row["stock"]:
        what = "" if row["key"].startswith("encoder") else "  (of the language: decode)"
        yield f"{what:<30} {'stock':<6} {Figures(**row['stock']).line}"
    if row["left_out"]:
        yield f"{'':<30} {'stock':<6}   {row['left_out']}"


def missed(records: Iterable[dict[str, Any]]) -> str:
    """Returns the list of missed targets and failed rows, or that there are none."""
    lines, met = [], 0
    for record in records:
        for row in record["rows"]:
            name = f"  {record['name']}, {row['title']}"
            if row["failed"]:
                lines.append(f"{name}: failed, {row['failed']}")
            for target in row["targets"]:
                met += target["met"]
                if not target["met"]:
                    lines.append(f"{name}: {target['told']} ({row['ours']['cpu']:.1f} CPU s)")
    counted = f"{met} targets met" if met else "no target met"
    return "\n".join([f"{counted}; missed:" if lines else f"{counted}, none missed", *lines])
