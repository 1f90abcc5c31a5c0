"""How a long job tells what it is doing, without knowing who listens.

Rooms take a `progress: Progress = SILENT` and report stages and notes to it; only the command line owns a
terminal (`fastvlm.terminal`). The base class does nothing, so that library use is silent and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]


class Progress:
    """A listener that ignores everything; subclasses show or record what they are told."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Open one stage of work; yields `advance(n)`, in the unit of `total` (None: length unknown)."""
        return _silent_stage()

    def note(self, text: str) -> None:
        """Tell one line worth reading: an assumption made, a warning, where something lies."""


@contextmanager
def _silent_stage() -> Iterator[Advance]:
    yield ignore


def ignore(count: int) -> None:
    """Take an advance and show nothing."""


SILENT = Progress()
