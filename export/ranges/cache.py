"""The results of scans, kept by what was scanned: one JSON file for each checkpoint in the cache's folder.

A checkpoint is told by its fingerprint: the hashes of its files as the manifest states them (texts for people left
out), its sizes, and whatever of it is in memory, because whoever loads a model may change it before it is scanned or
exported.
A file is used only where version, fingerprint and the hash of its content are as they must be; anything else is told
in one line and counts as none. It is published as every file is (`fastvlm.publish`); what older versions left that were
killed while they wrote goes when the next result is kept.
It knows neither models' graphs nor exponents.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.parts_key import memory_digest
from export.ranges.result import Ranges, ranges_of
from fastvlm import steps
from fastvlm.cache import cache_folder
from fastvlm.errors import OutputError
from fastvlm.hashes import FileHash
from fastvlm.json_file import read_plain
from fastvlm.manifest import dump
from fastvlm.owners import is_abandoned
from fastvlm.parts import digest
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import replace_file
from fastvlm_ref.checkpoint.source import is_prose
from fastvlm_ref.model.fastvlm import FastVLM

VERSION = 1  # raised when inputs, names or numbers of a scan change: older results then count as none
FOLDER = "scans"
MAX_BYTES = 16 << 20  # a scan of 7B has 0.2 MB
HALF = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.half")  # as older versions named what they were writing


def fingerprint(model: FastVLM, files: Mapping[str, FileHash]) -> str:
    """Returns what tells a checkpoint from all others, 64 hex digits; `files` is `Source.files()`."""
    hashes = {name: entry["sha256"] for name, entry in files.items() if not is_prose(name.rpartition("/")[2])}
    memory = memory_digest((model.vision_encoder, model.projector, model.decoder))
    return digest({"files": hashes, "memory": memory, "config": asdict(model.config)})


def place_of(fingerprint: str) -> Path:
    """Returns where the result for a fingerprint lies, or would."""
    return cache_folder() / FOLDER / f"{fingerprint}.json"


def load(fingerprint: str, progress: Progress = SILENT) -> Ranges | None:
    """Returns the kept result, None where there is none that can be used; why one is not used is told as a note."""
    place = place_of(fingerprint)
    try:
        return _ranges(_content(place), fingerprint)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        progress.note(f"the scan kept in {place} is not used: {reason}; `fastvlm scan` makes it anew")
        return None


def store(ranges: Ranges, progress: Progress = SILENT) -> Path | None:
    """Keeps a result and returns where; a cache that cannot be written is told as a note, and None returned."""
    place, content = place_of(ranges.fingerprint), ranges.as_json()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_halves(place.parent)
        replace_file(place, dump({"version": VERSION, "ranges": content, "sha256": digest(content)}))
    except (OSError, OutputError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        progress.note(
            f"the scan cannot be kept in {place.parent} ({reason}), so `export` will not find it; "
            "set FASTVLM_CACHE to a folder that can be written"
        )
        return None
    return place


def _remove_halves(folder: Path) -> None:
    """Their names tell no process, so those that nobody has changed for a day are taken for left."""
    for path in folder.iterdir():
        with suppress(OSError):
            if HALF.fullmatch(path.name) and is_abandoned(path):
                steps.remove(path)


def _content(place: Path) -> dict[str, Any]:
    status = place.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise ValueError("it is no file that a scan wrote")
    try:
        content = json.loads(read_plain(place, MAX_BYTES), parse_constant=_refuse)
    except ValueError as problem:
        raise ValueError(f"it is damaged ({str(problem)[:120]})") from problem
    if not isinstance(content, dict) or type(content.get("version")) is not int:
        raise ValueError("it is no file that a scan wrote")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of a scan")


def _ranges(content: Mapping[str, Any], fingerprint: str) -> Ranges:
    """The result in a file's content; ValueError for another version, another checkpoint's, or a changed one."""
    version = content["version"]
    if version != VERSION:
        older = "an older" if version < VERSION else "a newer"
        raise ValueError(f"{older} fastvlm wrote it (version {version}, this one reads {VERSION})")
    ranges = content.get("ranges")
    if not isinstance(ranges, dict) or content.get("sha256") != digest(ranges):
        raise ValueError("it is damaged (its hash differs)")
    found = ranges_of(ranges)
    if found.fingerprint != fingerprint:
        raise ValueError("it is another checkpoint's")
    return found
