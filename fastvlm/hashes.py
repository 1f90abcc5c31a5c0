"""SHA-256 of files, bytes and folder trees, as manifests and reports state them.

Paths are POSIX and sorted, so that a tree's hashes are the same bytes on every machine. Linked files are read
through (a Hugging Face snapshot is all links); a linked folder is refused, because it could lead in a circle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

from fastvlm.errors import FastVLMError


class FileHash(TypedDict):
    """One file as a manifest lists it."""

    sha256: str
    bytes: int


def sha256_bytes(data: bytes | bytearray | memoryview) -> str:
    """The SHA-256 of `data`, as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces so that its size does not matter."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_hash(path: str | Path) -> FileHash:
    """Hash and length of one file, in bytes."""
    return FileHash(sha256=sha256_file(path), bytes=os.stat(path).st_size)


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


def hash_tree(folder: str | Path, skip: Collection[str] = ()) -> dict[str, FileHash]:
    """`{relative POSIX path: {"sha256", "bytes"}}` of every file below `folder`, sorted by path."""
    root = Path(folder)
    return {path: file_hash(root / path) for path in list_tree(root, skip)}


def _cannot_list(problem: OSError) -> None:
    raise FastVLMError(f"{problem.filename} cannot be listed ({problem.strerror}); check its permissions") from problem
