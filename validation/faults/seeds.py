"""Clean checkpoints of many seeds: none of them may raise an alarm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from validation.faults.checkpoints import seeded
from validation.faults.suite import Outcome, plant


def clean(seeds: Iterable[int], folder: Path) -> Iterator[tuple[int, Outcome]]:
    """Gives for each seed what the rungs make of its small checkpoint and its build."""
    for seed in seeds:
        with TemporaryDirectory(dir=folder) as place:
            yield seed, plant(None, seeded(seed, Path(place)))
