"""Files into a bundle, and proof that they arrived: what is hashed is the copy, and it is held to what was promised.

Modes are set, not inherited: a bundle is the same under any umask.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from fastvlm.hashes import FileHash, file_hash
from fastvlm.paths import open_contained
from fastvlm.progress import Advance, Progress
from ios_bundle.contents import Entry

FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755
_PIECE = 1 << 22
_AGAIN = "copy or export the build again"


def copy_entries(
    build: Path, folder: Path, entries: Iterable[Entry], promised: Mapping[str, str], progress: Progress
) -> tuple[dict[str, FileHash], list[str]]:
    """Writes `entries` into `folder`; returns the hash of each as it lies there, and the sources that were changed.

    promised: SHA-256 by source; a source without one counts as changed.
    """
    files: dict[str, FileHash] = {}
    found = list(entries)
    with progress.stage("Copying and hashing", sum(entry.size(build) for entry in found)) as advance:
        for entry in found:
            files[entry.path] = write_entry(build, folder, entry, advance)
    by_source: dict[str, list[Entry]] = {}
    for entry in found:
        if entry.source is not None:
            by_source.setdefault(entry.source, []).append(entry)
    changed = [source for source, pieces in by_source.items() if _joined(folder, pieces, files) != promised.get(source)]
    return files, changed


def write_entry(build: Path, folder: Path, entry: Entry, advance: Advance) -> FileHash:
    """Writes one file with its mode and returns its hash, read back from what was written."""
    target = folder / entry.path
    make_folders(folder, target.parent)
    if entry.source is None:
        target.write_bytes(entry.data)
    elif entry.start == 0 and entry.length is None:
        with open_contained(build, entry.source, missing=_AGAIN) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _PIECE)
    else:
        with open_contained(build, entry.source, missing=_AGAIN) as source, target.open("wb") as copy:
            _copy_piece(source, copy, entry.start, entry.size(build))
    target.chmod(PROGRAM_MODE if entry.executable else FILE_MODE)
    return file_hash(target, advance)


def make_folders(top: Path, folder: Path) -> None:
    """Makes the folders between `top` and `folder`, each with the bundle's mode."""
    if folder != top:
        make_folders(top, folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(FOLDER_MODE)


def _copy_piece(source: BinaryIO, target: BinaryIO, start: int, length: int) -> None:
    source.seek(start)
    while length and (piece := source.read(min(length, _PIECE))):
        target.write(piece)
        length -= len(piece)


def _joined(folder: Path, pieces: list[Entry], files: Mapping[str, FileHash]) -> str:
    """The SHA-256 of a source as it was copied: of its pieces one behind the other, where it was cut."""
    if len(pieces) == 1:
        return files[pieces[0].path]["sha256"]
    digest = hashlib.sha256()
    for piece in sorted(pieces, key=lambda entry: entry.start):
        with (folder / piece.path).open("rb") as handle:
            while data := handle.read(_PIECE):
                digest.update(data)
    return digest.hexdigest()
