"""A finished folder takes its name: in one step where the file system can, in two renames where it cannot.

Whatever interrupts, one whole folder is at the name or, between two renames, beside it under the name of an `older`
one that `fastvlm.publish` puts back. Two runs may do this at once, with locks or without: the later one wins, and
neither sees a half. It knows nothing of what the folders hold; `check` says whether what has the name may go.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastvlm import steps
from fastvlm.errors import OutputError
from fastvlm.owners import hidden, hold, release

_TRIES = 1000  # each of which another run that publishes at this moment may spoil
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # the name has appeared meanwhile
_CHANGED = {*_TAKEN, errno.ENOENT}


def swap(stage: Path, place: Path, check: Callable[[], None]) -> None:
    """Let `stage` take the name `place`; what had it, once `check` allows that, is then at `stage` or gone.

    Raises whatever `check` does, OSError, and OutputError where others publish there without end.
    """
    for _ in range(_TRIES):
        try:
            if os.path.lexists(place):
                check()
                _exchange(stage, place)
            else:
                steps.rename(stage, place)
        except OSError as problem:
            if problem.errno not in _CHANGED or not os.path.lexists(stage):
                raise
        else:
            return
    raise OutputError(f"{place} changes all the time, other runs write there too; choose another place with -o")


def _exchange(stage: Path, place: Path) -> None:
    try:
        steps.exchange(stage, place)
    except OSError as problem:
        if problem.errno not in steps.NOT_SUPPORTED:
            raise
        _exchange_in_two_steps(stage, place)


def _exchange_in_two_steps(stage: Path, place: Path) -> None:
    """Let the names pass on one after the other; OSError of _CHANGED where another run came in between."""
    older = hold(hidden(place, "older"))
    try:
        try:
            steps.rename(place, older)
            steps.rename(stage, place)
        except BaseException:  # after either of them too: a Ctrl-C comes when it likes
            _back(older, place)
            raise
        with suppress(OSError):  # the new one has its name; what stays of the older one, the next run removes
            steps.rename(older, stage)  # where the caller removes it
    finally:
        release(older)


def _back(older: Path, place: Path) -> None:
    """Gives the older folder its name back; where a newer one has it by now, the older one goes."""
    if os.path.lexists(older) and not os.path.lexists(place):
        try:
            os.rename(older, place)
            return
        except OSError as problem:
            if problem.errno not in _TAKEN:
                raise
    if os.path.lexists(older) and os.path.lexists(place):
        gone = hold(hidden(place, "stage"))  # half of a folder must not be found under the name of an older one
        with suppress(OSError):
            steps.rename(older, gone)
            steps.remove(gone, strict=False)
        release(gone)
