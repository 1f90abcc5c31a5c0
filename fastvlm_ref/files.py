"""How every file of a checkpoint folder is opened: plain, in the folder itself, and never waited for.

A folder from a stranger may hold links: followed, the next export would copy whatever the user may read into a build
that is passed on. So no link is followed, with one exception: in a snapshot of the Hub's cache every file is a link to
`../../blobs/<hash>`, which huggingface_hub made. Such a link is taken by its text, the blob must be a plain file.
It does not know what a file is for.
Source: the layout of the cache, huggingface_hub's guide "Understand caching".
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from fastvlm.errors import CheckpointError
from fastvlm.paths import open_plain

_BLOB = re.compile(r"\.\./\.\./blobs/([0-9a-f]{40}(?:[0-9a-f]{24})?)")  # git's SHA-1, or SHA-256 of large files


def open_file(path: Path) -> BinaryIO:
    """Opens a file of a checkpoint folder to be read.

    Raises CheckpointError for a link that is none of the Hub's cache and for what is no plain file; OSError for what
    is not there or may not be read.
    """
    try:
        try:
            return open_plain(path)
        except OSError as problem:
            blob = _blob(path) if problem.errno == errno.ELOOP else None
            if blob is None:
                raise
            return open_plain(blob)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV):
            raise CheckpointError(
                f"{path} is a link or no plain file, and is not read; put a copy of the file itself there"
            ) from problem
        raise


def size_of(path: Path) -> int:
    """Returns how many bytes a file of a checkpoint folder has.

    Raises as `open_file`, and CheckpointError for what cannot be read.
    """
    try:
        with open_file(path) as file:
            return os.fstat(file.fileno()).st_size
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read ({problem.strerror}); {_cure(path)}") from problem


def read_file(path: Path, most: int, error: type[CheckpointError] = CheckpointError) -> bytes:
    """Returns the bytes of a file of a checkpoint folder.

    Raises as `open_file`, and `error` for what cannot be read and for more than `most` bytes.
    """
    try:
        with open_file(path) as file:
            data = file.read(most + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); {_cure(path)}") from problem
    if size > most:
        raise error(f"{path} has {size:,} bytes, at most {most:,} are read; copy it again from the source")
    return data


def copy_file(path: Path, target: Path) -> None:
    """Copies a file of a checkpoint folder to `target`; raises as `open_file`."""
    with open_file(path) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def _cure(path: Path) -> str:
    """What to do where a file cannot be read: links of a cache that was tidied by hand lead nowhere."""
    if path.is_symlink() and not path.exists():
        return "it is a link that leads nowhere: fetch the checkpoint again, or remove the link"
    return "check its permissions"


def _blob(path: Path) -> Path | None:
    """The blob that a link in a snapshot of the Hub's cache means, None for any other link."""
    found = _BLOB.fullmatch(os.readlink(path))
    snapshot = path.parent.resolve()
    return snapshot.parent.parent / "blobs" / found[1] if found and snapshot.parent.name == "snapshots" else None
