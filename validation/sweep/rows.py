"""The rows of a sweep on the disk: a file for each case, under the case's id, whole or not there.

A row is written beside its place and renamed, so that a killed worker leaves none or a whole one; and two workers that
measure the same case (one of them taken for dead) leave one row, not two. A case that could not be measured has a row
as well, with the error in it: it is shown, and measured again by the next run.

SWEEP marks a folder as a sweep's and holds its name, by which a worker on another machine knows that it sees the same
disk.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastvlm.durable import sync
from fastvlm.errors import OutputError
from fastvlm.json_file import read_json
from fastvlm.manifest import dump
from fastvlm.publish import replace_file

SWEEP, ROWS, BUILDS = "sweep.json", "rows", "builds"
SCHEMA = "0.1"
LARGEST = 1 << 20  # bytes of a row's file
ERROR = "error"  # the status of a case without a result
Row = dict[str, Any]


def open_folder(place: Path) -> str:
    """Makes a sweep's folder, or goes on in one; returns its name. OutputError for a folder of something else."""
    marker = place / SWEEP
    if place.is_dir() and not marker.is_file() and any(place.iterdir()):
        raise OutputError(f"{place} holds other things than a sweep; choose another place with -o")
    if place.exists() and not place.is_dir():
        raise OutputError(f"{place} is a file, expected a sweep's folder or nothing; choose another place with -o")
    try:
        for folder in (place / ROWS, place / BUILDS):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(f"cannot make {place} ({problem.strerror}); choose another place with -o") from problem
    if not marker.is_file():
        replace_file(marker, json.dumps({"schema": SCHEMA, "name": secrets.token_hex(8)}).encode())
    return name_of(place)


def name_of(place: Path) -> str:
    """Returns a sweep's name; OutputError where there is no sweep, as on a machine that does not see the disk."""
    try:
        found = read_json(place / SWEEP, LARGEST)
    except (OSError, ValueError) as problem:
        raise OutputError(
            f"there is no sweep in {place} ({problem}); every worker must see the folder of -o under that name"
        ) from problem
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise OutputError(f"{place / SWEEP} is damaged; choose another place with -o")
    return str(found["name"])


def write_row(place: Path, row: Row) -> None:
    """Puts a row on the disk under its case's id, in place of an earlier one."""
    file = _file(place, row["case"])
    replace_file(file, dump(row))
    sync(file.parent)


def read_row(place: Path, case: str) -> Row | None:
    """Returns a case's row, None where there is none, or a file that is no row of it."""
    try:
        row = read_json(_file(place, case), LARGEST)
    except (OSError, ValueError):  # not there, or damaged: measured anew
        return None
    return row if isinstance(row, dict) and row.get("case") == case and row.get("schema") == SCHEMA else None


def measured(place: Path, cases: Iterable[str]) -> dict[str, Row]:
    """Returns the rows of those cases that have a result."""
    found = {case: read_row(place, case) for case in cases}
    return {case: row for case, row in found.items() if row is not None and row["status"] != ERROR}


def _file(place: Path, case: str) -> Path:
    return place / ROWS / f"{case}.json"
