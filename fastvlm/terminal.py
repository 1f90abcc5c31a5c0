"""What is shown on a terminal: bars for stages and notes on stderr, and the console of all tables.

Bars are for a person in front of a terminal. In a pipe, a log or a test, stages say nothing, and notes (assumptions
that were made, warnings) are printed as plain lines, because they matter there too. Whatever is printed here may hold
a stranger's words: a terminal obeys none of them (`fastvlm.quoting`), they are no markup, and no line is begun by them:
a line feed is spelled out as well, except in a cell that asks for `lines`. What is to be two lines is printed twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from fastvlm.progress import Advance, Progress
from fastvlm.quoting import printable, readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.text import Text


class TerminalProgress(Progress):
    """Shows stages as bars on a terminal and notes as lines; quiet bars when `stream` is no terminal."""

    def __init__(self, stream: TextIO | None = None, transient: bool = False) -> None:
        self._console = new_console(stream or sys.stderr)
        self._bars: Bars | None = None
        self._transient = transient  # whether bars vanish when they are done

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """One bar while the block runs; stages inside each other show one below the other."""
        return self._bar(name, total) if self._console.is_terminal else super().stage(name, total)

    def note(self, text: str) -> None:
        """One plain line, above the bars if there are any."""
        self._console.print(f"note: {printable(text, None)}")

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Advance]:
        outermost = self._bars is None
        if self._bars is None:
            self._bars = _new_bars(self._console, self._transient)
            self._bars.start()
        bars = self._bars
        task = bars.add_task(printable(name), total=total)
        try:
            yield lambda count: bars.advance(task, count)
            # A stage of unknown length has no total until it ends.
            bars.update(task, total=total or 1, completed=total or 1)
        finally:
            bars.stop_task(task)
            if outermost:
                bars.stop()
                self._bars = None


def new_console(file: TextIO | None = None, width: int | None = None) -> Console:
    """Returns a console for tables and lines on `file` (none: stdout), of `width` columns (none: the terminal's)."""
    from rich.console import Console

    class Quoting(Console):
        """Every text comes through here, those in the cells of tables too, and stays one line."""

        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(printable(text, None), **how)

    return Quoting(file=file, width=width, soft_wrap=True, highlight=False, markup=False, emoji=False)


def lines(text: str) -> Text:
    """Returns a cell of a table with borders for what has lines and scripts of its own: a question, an answer."""
    from rich.text import Text

    return Text(readable(text))


def _new_bars(console: Console, transient: bool) -> Bars:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=transient)
