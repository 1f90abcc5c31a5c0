"""The finished parts of work that was interrupted: kept in its stage, told by what made them, used again.

A part is a file or a folder of the stage. Its record, `.parts/NAME.json`, is written last and holds the digest of what
made it (given by the caller), the hash of each of its files, and the result that its maker returned. A part is used
again only where all three are as they must be; a file's existence says nothing. Whatever is damaged, changed, linked,
extra, missing or made of something else is made anew, and that is said.
A part is written under another name inside `.parts/` and takes its own when it is whole and on the disk, so at any
moment a stage holds whole parts, and remains that `tidy` knows. `fastvlm.publish` decides which run has the stage.
It knows nothing of what a part contains.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastvlm import steps
from fastvlm.hashes import FileHash, hash_files, sha256_bytes
from fastvlm.json_file import read_plain
from fastvlm.progress import SILENT, Progress

RECORDS = ".parts"  # in a stage; never in what is published
_HALF = "half"  # below RECORDS: where parts are written
_SUFFIX = ".json"
_NAME = re.compile(r"[^./\0][^/\0]*")
_FIELDS = {"made_of", "files", "result"}
_MAX_BYTES = 32 << 20

Content = Mapping[str, Any]  # of JSON


class Parts:
    """The parts of one stage, of which a run that was interrupted may have left some."""

    def __init__(self, stage: Path, progress: Progress = SILENT) -> None:
        self._stage = stage
        self._records = stage / RECORDS
        self._progress = progress
        self._hashes: dict[str, FileHash] = {}
        self._names: set[str] = set()
        steps.make(self._records, there=True)

    @property
    def names(self) -> list[str]:
        """The parts that `make` returned, sorted."""
        return sorted(self._names)

    @property
    def hashes(self) -> dict[str, FileHash]:
        """`{path relative to the stage: {"sha256", "bytes"}}` of their files, so that nobody need hash them again."""
        return dict(sorted(self._hashes.items()))

    def want(self, wanted: Mapping[str, Content]) -> dict[str, int]:
        """Remove every finished part that is none of `wanted`, {name: what makes it}; the bytes of those that stay.

        Reads no part: whether its files are as they were, `make` looks.
        """
        held = {}
        for name in _recorded(self._stage):
            record = self._record(name)
            if record is None or name not in wanted or record["made_of"] != digest(wanted[name]):
                self._progress.note(f"{name} of an interrupted run does not fit this one and is not used")
                self._remove(name)
            else:
                held[name] = sum(file["bytes"] for file in record["files"].values())
        return held

    def make(self, name: str, made_of: Content, write: Callable[[Path], Content]) -> dict[str, Any]:
        """The part `name`: one that is finished is taken over, otherwise `write` is called with the path to write to.

        `made_of` is all that the part's bytes depend on. Returns what `write` returned, now or then: a JSON object.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a part, expected a plain file name")
        record = self._sound(name, digest(made_of))
        if record is None:
            record = self._make(name, digest(made_of), write)
        self._hashes |= record["files"]
        self._names.add(name)
        result: dict[str, Any] = record["result"]
        return result

    def _sound(self, name: str, made_of: str) -> dict[str, Any] | None:
        """The record of a finished part whose every byte is as it was; whatever else there is of it is removed."""
        recorded = os.path.lexists(self._path(name))
        record = self._record(name)
        sound = record is not None and record["made_of"] == made_of and self._same_files(name, record["files"])
        if sound:
            self._progress.note(f"{name} was finished by an interrupted run and is taken over")
            return record
        if recorded:
            self._progress.note(f"{name} of an interrupted run is not as it was finished and is made anew")
        self._remove(name)
        return None

    def _same_files(self, name: str, expected: Mapping[str, FileHash]) -> bool:
        try:
            files = _plain_files(self._stage, name)
            if files is None or {path: os.stat(file).st_size for path, file in files.items()} != {
                path: entry["bytes"] for path, entry in expected.items()
            }:
                return False
            return hash_files(files, f"Checking {name}", self._progress) == expected
        except OSError:  # what cannot be read cannot be trusted
            return False

    def _make(self, name: str, made_of: str, write: Callable[[Path], Content]) -> dict[str, Any]:
        half = self._records / _HALF
        steps.remove(half)
        steps.make(half)
        result = write(half / name)
        files = _plain_files(half, name)
        if not files:
            raise RuntimeError(f"part {name} holds no files, or something else than files and folders")
        hashes = hash_files(files, f"Hashing {name}", self._progress)
        steps.sync_tree(half / name)
        steps.rename(half / name, self._stage / name)
        steps.sync(self._stage)
        record = {"made_of": made_of, "files": hashes, "result": dict(result)}
        self._write_record(name, record)
        return record

    def _path(self, name: str) -> Path:
        return self._records / f"{name}{_SUFFIX}"

    def _write_record(self, name: str, record: dict[str, Any]) -> None:
        half = self._records / _HALF / f"{name}{_SUFFIX}"
        steps.write(half, _canonical({"record": record, "sha256": digest(record)}))
        steps.sync(half)
        steps.rename(half, self._path(name))
        steps.sync(self._records)

    def _record(self, name: str) -> dict[str, Any] | None:
        """The record of a part, None where there is none or where one byte of it is not as it was written."""
        path = self._path(name)
        try:
            read = json.loads(read_plain(path, _MAX_BYTES))
            record: dict[str, Any] = read["record"]
            whole = read["sha256"] == digest(record) and record.keys() == _FIELDS and isinstance(record["result"], dict)
            return record if whole and all(type(e["bytes"]) is int for e in record["files"].values()) else None
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None

    def _remove(self, name: str) -> None:
        """The record goes first: a part without one is a remain."""
        steps.remove(self._path(name))
        steps.remove(self._stage / name)


def digest(content: Content) -> str:
    """The SHA-256 of the canonical JSON of `content`: the same for equal content, whatever the order of its keys."""
    return sha256_bytes(_canonical(content))


def holds_parts(stage: Path) -> bool:
    """Whether a stage holds a part that was finished."""
    return bool(_recorded(stage))


def tidy(stage: Path) -> None:
    """Remove from a stage whatever is no finished part and no record of one."""
    recorded = _recorded(stage)
    for path in (stage / RECORDS).iterdir() if recorded else ():
        if path.name not in {f"{name}{_SUFFIX}" for name in recorded}:
            steps.remove(path)
    for path in stage.iterdir():
        if path.name not in recorded and not (recorded and path.name == RECORDS):
            steps.remove(path)


def forget(stage: Path) -> None:
    """Remove the records, when all is finished and about to be published."""
    if os.path.lexists(stage / RECORDS):
        steps.remove(stage / RECORDS)
        steps.sync(stage)


def _recorded(stage: Path) -> list[str]:
    """The names that have a record, true or not, and something under their name."""
    records = stage / RECORDS
    if records.is_symlink() or not records.is_dir():
        return []
    names = (path.name.removesuffix(_SUFFIX) for path in records.iterdir() if path.name.endswith(_SUFFIX))
    return sorted(name for name in names if _NAME.fullmatch(name) and os.path.lexists(stage / name))


def _plain_files(root: Path, name: str) -> dict[str, Path] | None:
    """The files of the part root/name by path relative to `root`; None where anything is neither file nor folder.

    A file with a second name (a hard link) is none of ours, and neither is a folder without a file below it.
    """
    top = root / name
    files, folders = {}, set()
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            files[path.relative_to(root).as_posix()] = path
        elif stat.S_ISDIR(status.st_mode):
            folders.add(path)
        else:
            return None
    return files if folders <= {parent for path in files.values() for parent in path.parents} else None


def _canonical(content: Content) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
