"""SHA-256 of files, bytes and folder trees, as manifests and reports state them.

Paths are POSIX and sorted, so that a tree's hashes are the same bytes on every machine. Linked files are read
through (a Hugging Face snapshot is all links) unless `opened` says otherwise; a linked folder is refused, because it
could lead in a circle, and a pipe or a device in a file's place is an OSError: it has no end.
Hashing 15 GB takes a minute: whoever hashes more than one small file passes a `progress`, which is told in bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO, TypedDict

from fastvlm.errors import FastVLMError
from fastvlm.paths import open_followed
from fastvlm.progress import SILENT, Advance, Progress, ignore

_PIECE = 1 << 20  # bytes read at a time: hashes at full speed, and a bar moves smoothly


Opener = Callable[[Path], BinaryIO]  # how a file is opened: by which rule


class FileHash(TypedDict):
    """One file as a manifest lists it."""

    sha256: str
    bytes: int


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """The SHA-256 of `data`, as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_open(file: BinaryIO, advance: Advance = ignore) -> str:
    """The SHA-256 of the rest of an open file, read in pieces so that its size does not matter."""
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def sha256_file(path: str | Path, advance: Advance = ignore, opened: Opener = open_followed) -> str:
    """The SHA-256 of a file's bytes, as `sha256_open`; `advance` is told of each piece."""
    with opened(Path(path)) as file:
        return sha256_open(file, advance)


def file_hash(path: str | Path, advance: Advance = ignore, opened: Opener = open_followed) -> FileHash:
    """Hash and length of one file, in bytes."""
    with opened(Path(path)) as file:
        return FileHash(sha256=sha256_open(file, advance), bytes=os.fstat(file.fileno()).st_size)


def hash_files(
    files: Mapping[str, Path], name: str, progress: Progress = SILENT, opened: Opener = open_followed
) -> dict[str, FileHash]:
    """`{key: {"sha256", "bytes"}}` of `files`, sorted by key; one stage `name` of as many units as they have bytes."""
    total = sum(os.stat(path).st_size for path in files.values())
    with progress.stage(name, total) as advance:
        return {key: file_hash(path, advance, opened) for key, path in sorted(files.items())}


def list_tree(folder: Path, skip: Collection[str] = ()) -> list[str]:
    """Every file below `folder` as a sorted relative POSIX path; `skip` names relative files or folders to leave out.

    Raises FastVLMError for a folder that cannot be listed or that holds a link to a folder.
    """
    found: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=_cannot_list):
        base = Path(parent).relative_to(folder)
        folders[:] = sorted(name for name in folders if (base / name).as_posix() not in skip)
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise FastVLMError(f"{Path(parent) / name} is a link to a folder, expected plain folders; copy it")
        found += [path for name in files if (path := (base / name).as_posix()) not in skip]
    return sorted(found)


def hash_tree(
    folder: str | Path, skip: Collection[str] = (), name: str = "Hashing", progress: Progress = SILENT
) -> dict[str, FileHash]:
    """`{relative POSIX path: {"sha256", "bytes"}}` of every file below `folder`, sorted by path, as `hash_files`."""
    root = Path(folder)
    return hash_files({path: root / path for path in list_tree(root, skip)}, name, progress)


def _cannot_list(problem: OSError) -> None:
    raise FastVLMError(f"{problem.filename} cannot be listed ({problem.strerror}); check its permissions") from problem
