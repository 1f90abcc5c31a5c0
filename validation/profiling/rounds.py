"""In which order contenders are asked: one run of each in turn, round by round, so that what the machine does
meanwhile meets all of them. Every round begins with another contender.

A contender that fails is out, the others go on; what failed, and at which stage, is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastvlm.errors import FastVLMError, ProcessError
from fastvlm.progress import Progress
from validation.children import Child, Served
from validation.profiling.contender import Contender

Key = tuple[str, int | None]  # stage, position
Start = Callable[[Contender], Served]
LOADS = 3  # at most: opening a large package again and again tells nothing new


def start_child(contender: Contender) -> Served:
    """Starts the process that measures a contender."""
    return Child(contender.serves, contender.name, **contender.given)


@dataclass
class Measured:
    """What came of one contender: the first load and the first run apart, then seconds of every run, by stage.

    error: why it ended early, None where it did not; stage: what it was at.
    """

    contender: Contender
    first: dict[Key, float] = field(default_factory=dict)
    runs: dict[Key, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    plan: list[list[Any]] = field(default_factory=list)  # [package, function, rows of OpPlace] that it told itself
    error: FastVLMError | None = None
    stage: str = ""

    def keep_first(self, rows: list[list[Any]]) -> None:
        """Keeps the rows of a first load or run."""
        self.first |= {(stage, position): seconds for stage, position, seconds in rows}

    def keep(self, rows: list[list[Any]]) -> None:
        """Keeps the rows of one more run."""
        for stage, position, seconds in rows:
            self.runs.setdefault((stage, position), []).append(seconds)


class Race:
    """Contenders that are alive, asked in turn."""

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self.all = [Measured(contender) for contender in contenders]
        self._alive: dict[int, Served] = {}

    def start(self, start: Start = start_child) -> None:
        """Starts each: `start` makes what is called in its place."""
        for index, measured in enumerate(self.all):
            try:
                self._alive[index] = start(measured.contender)
            except FastVLMError as error:
                self._fails(index, error, "start")

    def ask(self, call: str, turn: int = 0, **given: Any) -> Iterator[tuple[Measured, Any]]:
        """Gives what each that is alive answers to a call, the one at place `turn` first."""
        count = len(self.all)
        for index in ((turn + place) % count for place in range(count)):
            if (answer := self.ask_one(index, call, **given)) is not None:
                yield self.all[index], answer

    def ask_one(self, index: int, call: str, **given: Any) -> Any:
        """Returns what one answers to a call; None where it has failed, now or before."""
        if index not in self._alive:
            return None
        try:
            return self._alive[index].call(call, **given)
        except FastVLMError as error:
            self._fails(index, error, getattr(self._alive[index], "stage", call))
            return None

    def _fails(self, index: int, error: FastVLMError, stage: str) -> None:
        measured = self.all[index]
        measured.error, measured.stage = error, error.stage if isinstance(error, ProcessError) else stage
        if index in self._alive:
            self._alive.pop(index).close()

    def close(self) -> None:
        """Ends all that are alive."""
        for served in self._alive.values():
            served.close()
        self._alive.clear()


@contextmanager
def started(contenders: Sequence[Contender], progress: Progress) -> Iterator[Race]:
    """A race whose contenders are started, and ended when the block is left, however it is."""
    race = Race(contenders)
    try:
        with progress.stage("Starting"):
            race.start()
        yield race
    finally:
        race.close()


def run_rounds(race: Race, runs: int, progress: Progress, again: int = LOADS) -> None:
    """First load and first run of each, `runs` rounds, peaks of memory, then packages opened `again`, all in turn."""
    with progress.stage("Loading", len(race.all)) as advance:
        for measured, rows in race.ask("load"):
            measured.keep_first(rows)
            advance(1)
    with progress.stage("Running", (runs + 1) * len(race.all)) as advance:
        for measured, rows in race.ask("run"):
            measured.keep_first(rows)
            advance(1)
        for turn in range(runs):
            for measured, rows in race.ask("run", turn):
                measured.keep(rows)
                advance(1)
    for measured, memory in race.ask("memory"):
        measured.memory = memory
    for measured, plan in race.ask("plan"):
        measured.plan = plan
    with progress.stage("Loading again"):
        for turn in range(min(runs, again)):
            for measured, rows in race.ask("load", turn):
                measured.keep(rows)
