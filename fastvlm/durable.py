"""Bringing files and folders to the disk, so that after a power cut a name never leads to empty files.

It knows nothing of what is in them; `fastvlm.publish` and `fastvlm.parts` say when it matters.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}


def sync_tree(path: Path) -> None:
    """Bring a file, or every file and folder at and below a folder, to the disk."""
    for parent, _, files in os.walk(path):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))
    if not path.is_dir():
        sync(path)


def sync(path: Path) -> None:
    """Bring one file, or the names in one folder, to the disk; a link is left as it is."""
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in NOT_SUPPORTED:  # some network file systems refuse to sync a folder
            raise
    finally:
        os.close(handle)
