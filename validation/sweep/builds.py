"""The builds of a sweep on the disk: how one goes, and what killed workers and killed removals have left.

A build goes under another name first: what a killed removal leaves must not be taken for a build. Only what this sweep
made goes: folders that the user has put there, and builds that an earlier run was told to keep, stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fastvlm import steps
from fastvlm.owners import HIDDEN
from fastvlm.publish import remove_folder
from validation.sweep.rows import BUILDS, ROWS

_LEFT = re.compile(r"\..+\.(gone-[0-9a-f]{8}|(stage|older)-" + HIDDEN + ")")  # by older versions; by `fastvlm.publish`


def build_at(place: Path, name: str) -> Path:
    """Returns where the build of that name lies."""
    return place / BUILDS / name


def remove(build: Path) -> None:
    """Takes a build away, if it is there."""
    remove_folder(build)


def tidy(place: Path, made: Iterable[str]) -> None:
    """Takes away, when nobody works any more, the builds `made` by this run and what was left half written."""
    for name in made:
        remove(build_at(place, name))
    for folder in (place / BUILDS, place / ROWS):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _LEFT.fullmatch(entry.name):
                steps.remove(entry, strict=False)
