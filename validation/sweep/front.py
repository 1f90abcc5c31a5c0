"""Which rows no other row beats: smaller, sooner and nearer to the truth at once.

A row is on the front when no other of its group is at least as good in everything and better in something. Two errors,
and for each the rows that may be compared: the KL divergence says how far a build is from its own checkpoint, so only
builds of one checkpoint at one image size share it; the share of wrong answers is the same for all that were asked the
same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from validation.sweep.rows import Row


def nearest(row: Row) -> tuple[float, ...] | None:
    """What is to be small of a row beside builds of its own checkpoint; None for a row that has it not."""
    return _point(row, row.get("kl"))


def rightest(row: Row) -> tuple[float, ...] | None:
    """What is to be small of a row beside all that were asked the same; None where no true answer is known."""
    return _point(row, row.get("wrong"))


def family(row: Row) -> tuple[Any, ...]:
    """Rows that `nearest` compares."""
    return row["images"], row["checkpoint"], row["image_size"]


def task(row: Row) -> tuple[Any, ...]:
    """Rows that `rightest` compares."""
    return (row["images"],)


def front(
    rows: Sequence[Row], point: Callable[[Row], tuple[float, ...] | None], group: Callable[[Row], tuple[Any, ...]]
) -> list[bool]:
    """Returns for each row whether no other of its group beats it."""
    points = [point(row) for row in rows]
    groups = [group(row) for row in rows]
    return [
        own is not None
        and not any(
            other is not None and kind == groups[place] and _beats(other, own)
            for other, kind in zip(points, groups, strict=True)
        )
        for place, own in enumerate(points)
    ]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def _point(row: Row, error: float | None) -> tuple[float, ...] | None:
    if error is None or row.get("first_token") is None:
        return None
    return float(row["bytes"]), float(row["first_token"]), float(error)
