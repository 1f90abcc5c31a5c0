"""Progress on a terminal: one bar per stage, on stderr; where nobody watches, only the notes.

Bars are for a person in front of a terminal. In a pipe, a log or a test, stages say nothing, and notes (assumptions
that were made, warnings) are printed as plain lines, because they matter there too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TextIO

from fastvlm.progress import Advance, Progress
from fastvlm.quoting import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars


class TerminalProgress(Progress):
    """Shows stages as bars on a terminal and notes as lines; quiet bars when `stream` is no terminal."""

    def __init__(self, stream: TextIO | None = None, transient: bool = False) -> None:
        from rich.console import Console

        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._transient = transient  # whether bars vanish when they are done

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """One bar while the block runs; stages inside each other show one below the other."""
        return self._bar(name, total) if self._console.is_terminal else super().stage(name, total)

    def note(self, text: str) -> None:
        """One plain line, above the bars if there are any; names in it may hold what a terminal would obey."""
        self._console.print(f"note: {printable(text, len(text))}", markup=False)

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Advance]:
        outermost = self._bars is None
        if self._bars is None:
            self._bars = _new_bars(self._console, self._transient)
            self._bars.start()
        bars = self._bars
        task = bars.add_task(name, total=total)
        try:
            yield lambda count: bars.advance(task, count)
            # A stage of unknown length has no total until it ends.
            bars.update(task, total=total or 1, completed=total or 1)
        finally:
            bars.stop_task(task)
            if outermost:
                bars.stop()
                self._bars = None


def _new_bars(console: Console, transient: bool) -> Bars:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=transient)
