"""Temporary files of libraries inside a stage, where they go with it, on the disk that was chosen and measured.

coremltools writes a whole package before ours is written, and torch makes a folder for its compiler; both ask the
system for a place, which may be a small disk in memory, and both leave something behind when a process is killed.
The place is one for the whole process, so where several threads work, it is that of the one that began last.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvlm import steps

FOLDER = ".tmp"  # in a stage; never in what is published
COMPILER = "TORCHINDUCTOR_CACHE_DIR"  # which torch sets for good when it is not set (torch/_inductor/runtime)
_NAMES = ("TMPDIR", COMPILER)
_guard = threading.Lock()
_places: list[Path] = []  # of the blocks that run now
_outside: dict[str, str | None] = {}  # what was set before the first of them


@contextmanager
def temporary_in(stage: Path) -> Iterator[Path]:
    """Lets every temporary file of this process and of its children lie in `stage`/.tmp, which the end removes."""
    place = stage / FOLDER
    steps.remove(place)
    steps.make(place)
    with _guard:
        if not _places:
            _outside.update({name: os.environ.get(name) for name in _NAMES}, tempdir=tempfile.tempdir)
        _places.append(place)
        _apply()
    try:
        yield place
    finally:
        with _guard:
            _places.remove(place)
            _apply()
        steps.remove(place, strict=False)


def _apply() -> None:
    """Sets what the latest block asks for, or what was set outside of all."""
    if _places:
        wanted: dict[str, str | None] = {"TMPDIR": str(_places[-1]), COMPILER: _outside[COMPILER]}
        wanted[COMPILER] = wanted[COMPILER] or str(_places[-1] / "torchinductor")
        tempfile.tempdir = str(_places[-1])
    else:
        wanted = {name: _outside[name] for name in _NAMES}
        tempfile.tempdir = _outside["tempdir"]
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
