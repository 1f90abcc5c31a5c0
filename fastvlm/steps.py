"""The few operations by which this tool changes what lies on a disk: make, write, sync, rename, exchange, remove.

`fastvlm.publish` and `fastvlm.parts` are made of them and of nothing else. `before` is told of each step, by its name
and its path, before it happens: a test puts a function there that raises an errno, or ends the process, at step n, and
looks at what is left. Otherwise nothing is there, and a step costs one call more.
Syncing is what brings files and names to the disk, so that after a power cut a name never leads to empty files.
It knows neither stages nor parts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV}
STEPS = ("make", "write", "sync", "rename", "exchange", "remove")
_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h on macOS
_AT_FDCWD = -100


def _nothing(step: str, path: Path) -> None:
    """What happens before a step outside of tests."""


before: Callable[[str, Path], None] = _nothing


def make(folder: Path, *, there: bool = False) -> None:
    """Make one folder; `there`: it may exist already."""
    before("make", folder)
    folder.mkdir(exist_ok=there)


def write(path: Path, data: bytes) -> None:
    """Write a new file; FileExistsError where something has the name. It is on the disk after `sync`."""
    before("write", path)
    with path.open("xb") as file:
        file.write(data)


def sync(path: Path) -> None:
    """Bring one file, or the names in one folder, to the disk; a link is left as it is."""
    if path.is_symlink():
        return
    before("sync", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in NOT_SUPPORTED:  # some network file systems refuse to sync a folder
            raise
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Bring a file, or every file and folder at and below a folder, to the disk."""
    for parent, _, files in os.walk(path):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))
    if not path.is_dir():
        sync(path)


def rename(first: Path, second: Path) -> None:
    """Let `first` take the name `second`, of which a file or an empty folder is replaced in the same moment."""
    before("rename", second)
    os.rename(first, second)


def exchange(first: Path, second: Path) -> None:
    """Let two folders trade names in one step; OSError of NOT_SUPPORTED where the file system cannot."""
    before("exchange", second)
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, ctypes.c_uint(_RENAME_SWAP))
        else:
            failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    except AttributeError as absent:  # a libc without the call
        raise OSError(errno.ENOSYS, "no atomic exchange of folders here") from absent
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))


def remove(path: Path, *, strict: bool = True) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; not `strict`: as far as that can be done."""
    with suppress(*(() if strict else (OSError,))):
        before("remove", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=not strict)
        else:
            path.unlink(missing_ok=True)
