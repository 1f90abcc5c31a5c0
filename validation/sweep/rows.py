"""The rows of a sweep on the disk: a file for each case, under the case's id, whole or not there.

A row is written beside its place and renamed, so that a killed worker leaves none or a whole one; and two workers that
measure the same case (one of them taken for dead) leave one row, not two. A case that could not be measured has a row
as well, with the error in it: it is shown, and measured again by the next run.

SWEEP marks a folder as a sweep's and holds its name, by which a worker on another machine knows that it sees the same
disk. LOCK is held by the one sweep that works in the folder; where the file system knows no locks, nobody is told.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvlm.errors import OutputError
from fastvlm.json_file import read_json
from fastvlm.manifest import dump
from fastvlm.publish import replace_file
from fastvlm.steps import NOT_SUPPORTED

SWEEP, LOCK, ROWS, BUILDS = "sweep.json", "sweep.lock", "rows", "builds"
SCHEMA = "0.1"
LARGEST = 1 << 20  # bytes of a row's file
ERROR = "error"  # the status of a case without a result
RESULTS = ("passed", "failed")  # as `validate` says
Row = dict[str, Any]
TEXT, COUNT, NUMBER = (str,), (int,), (int, float)
NEEDED: dict[str, tuple[type, ...]] = {  # of every row
    "case": TEXT, "build": TEXT, "checkpoint": TEXT, "image_size": COUNT, "scheme": TEXT, "target": TEXT,
    "context": COUNT, "images": TEXT,
}  # fmt: skip
RESULT: dict[str, tuple[type, ...]] = {  # of a row with a result
    "bytes": COUNT, "kl": (*NUMBER, type(None)), "questions": COUNT, "agree": COUNT, "answered": COUNT,
    "build_right": COUNT, "reference_right": COUNT, "missed": (list,), "lacking": (list,), "estimates": (list,),
}  # fmt: skip
ESTIMATE: dict[str, tuple[type, ...]] = {
    "devices": (list,), "first_token": NUMBER, "tokens_per_second": NUMBER, "memory": COUNT,
}  # fmt: skip


def check_place(place: Path) -> None:
    """Raises OutputError for a folder of something else, or a place where none can be; changes nothing."""
    try:
        if place.exists() and not place.is_dir():
            raise OutputError(f"{place} is a file, expected a sweep's folder or nothing; choose another place with -o")
        if place.is_dir() and not (place / SWEEP).is_file() and any(map(_is_foreign, place.iterdir())):
            raise OutputError(f"{place} holds other things than a sweep; choose another place with -o")
        if (place / SWEEP).is_file():
            name_of(place)
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(f"{there} may not be written by this user, or is a file; choose another place with -o")
    except OSError as problem:
        raise _cannot_make(place, problem) from problem


def _is_foreign(entry: Path) -> bool:
    """Whether it is nothing that a sweep leaves which was killed, or out of space, before its name was written."""
    return entry.name not in (LOCK, ROWS, BUILDS) and not entry.name.startswith(f".{SWEEP}.stage-")


def _cannot_make(place: Path, problem: OSError) -> OutputError:
    return OutputError(f"cannot make {place} ({problem.strerror}); choose another place with -o")


def open_folder(place: Path) -> str:
    """Makes a sweep's folder, or goes on in one; returns its name. OutputError for a folder of something else."""
    check_place(place)
    try:
        for folder in (place / ROWS, place / BUILDS):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _cannot_make(place, problem) from problem
    if not (place / SWEEP).is_file():
        replace_file(place / SWEEP, json.dumps({"schema": SCHEMA, "name": secrets.token_hex(8)}).encode())
    return name_of(place)


@contextmanager
def held(place: Path) -> Iterator[str]:
    """Opens a sweep's folder for this sweep alone and yields its name; OutputError while another one works in it.

    The lock goes with the process, however that ends.
    """
    check_place(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as problem:
        raise _cannot_make(place, problem) from problem
    try:
        _lock(lock, place)
        yield open_folder(place)
    finally:
        os.close(lock)


def _lock(file: int, place: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        raise OutputError(
            f"another sweep works in {place}; wait for its end and type the same command again, or choose another "
            "place with -o"
        ) from problem
    except OSError as problem:
        if problem.errno not in {*NOT_SUPPORTED, errno.ENOLCK}:
            raise _cannot_make(place, problem) from problem


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
    major = str(found.get("schema")).partition(".")[0]
    if major != SCHEMA.partition(".")[0]:
        raise OutputError(
            f"{place / SWEEP} has schema {found.get('schema')!r}, this fastvlm reads {SCHEMA}; install a fastvlm that "
            "reads it, or choose another place with -o"
        )
    return str(found["name"])


def write_row(place: Path, row: Row) -> None:
    """Puts a row on the disk under its case's id, in place of an earlier one."""
    replace_file(_file(place, row["case"]), dump(row))


def write_error(place: Path, row: Row) -> None:
    """The same for a case that could not be measured; a result that somebody else has put there stays."""
    if not measured(place, [row["case"]]):
        write_row(place, row)


def read_row(place: Path, case: str) -> Row | None:
    """Returns a case's row, None where there is none, or a file that is no row of it."""
    try:
        row = read_json(_file(place, case), LARGEST)
    except (OSError, ValueError):  # not there, or damaged: measured anew
        return None
    return row if _is_row(row) and row["case"] == case else None


def _is_row(row: Any) -> bool:
    """Whether it holds what the table and the plot are made of, as this schema has it."""
    if not _has(row, NEEDED) or row.get("schema") != SCHEMA:
        return False
    if row.get("status") == ERROR:
        return isinstance(row.get("error"), str)
    return row.get("status") in RESULTS and _has(row, RESULT) and all(_has(each, ESTIMATE) for each in row["estimates"])


def _has(content: Any, kinds: Mapping[str, tuple[type, ...]]) -> bool:
    return isinstance(content, dict) and all(
        name in content and type(content[name]) in kind for name, kind in kinds.items()
    )


def measured(place: Path, cases: Iterable[str]) -> dict[str, Row]:
    """Returns the rows of those cases that have a result."""
    found = {case: read_row(place, case) for case in cases}
    return {case: row for case, row in found.items() if row is not None and row["status"] != ERROR}


def _file(place: Path, case: str) -> Path:
    return place / ROWS / f"{case}.json"
