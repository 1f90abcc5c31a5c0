"""Folders that a run of the tests makes once, though its processes share nothing but the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def made_once(place: Path, make: Callable[[Path], object]) -> Path:
    """Returns the folder `place`, which `make` makes, at the path that it is given, where it is not there yet.

    It appears whole: of two processes that make it at the same time, the folder of the faster one stays. Nobody may
    write to it.
    """
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / place.name
            make(made)
            try:
                made.rename(place)
            except OSError:
                if not place.is_dir():
                    raise
    return place
