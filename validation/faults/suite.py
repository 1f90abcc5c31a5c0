"""Plants faults one after the other, runs the comparison on each, and says which rungs found it.

A fault counts as caught when a row of its own rung is red: another rung that also finds it is no substitute, because
the fault might have been too small for that one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from validation.faults.checkpoints import Subject
from validation.faults.fault import Fault
from validation.faults.rungs import climb
from validation.limits import RUNGS, Measurement


@dataclass(frozen=True)
class Outcome:
    """What the rungs made of one bench: all rows, rungs that refused to run, seconds. `fault` None: a clean bench."""

    fault: Fault | None
    rows: tuple[Measurement, ...]
    refused: dict[str, str]
    seconds: float

    @property
    def red(self) -> tuple[Measurement, ...]:
        """The rows that missed their limit."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def found_by(self) -> tuple[str, ...]:
        """The rungs that raised an alarm, lowest first."""
        found = {row.limit.rung for row in self.red} | self.refused.keys()
        return tuple(rung for rung in RUNGS if rung in found)

    @property
    def good(self) -> bool:
        """Whether the rung that should found the fault; of a clean bench, whether none did."""
        return not self.found_by if self.fault is None else self.fault.rung in self.found_by

    @property
    def worst(self) -> str:
        """The first red row of the fault's own rung, or of any, in words; empty where nothing was found."""
        wanted = self.fault.rung if self.fault else None
        for rung, message in self.refused.items():
            return f"{rung} refused: {message}"
        rows = sorted(self.red, key=lambda row: row.limit.rung != wanted)
        return f"{rows[0].limit.key} = {rows[0].value:.3g} ({rows[0].limit.words})" if rows else ""


def plant(fault: Fault | None, subject: Subject, scheme: str = "fp16") -> Outcome:
    """Plants a fault into a fresh bench and runs every rung; None plants nothing into a build of `scheme`."""
    start = time.monotonic()
    with TemporaryDirectory(dir=subject.folder) as folder:
        scheme = fault.scheme if fault else scheme
        bench = subject.bench(
            Path(folder) / "build", scheme, own_model=fault is not None and fault.where == "reference"
        )
        if fault is not None:
            fault.plant(bench)
        bench.seal()
        rows, refused = climb(bench)
    return Outcome(fault, rows, refused, time.monotonic() - start)


def run(faults: Iterable[Fault], subject: Subject) -> Iterator[Outcome]:
    """Gives the outcome of a clean bench of every scheme that is used, then of every fault."""
    planted = tuple(faults)
    for scheme in dict.fromkeys(fault.scheme for fault in planted):
        yield plant(None, subject, scheme)
    for fault in planted:
        yield plant(fault, subject)
