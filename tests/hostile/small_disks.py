"""A real disk of a few kilobytes, for anybody: in a child that has a user and mounts of its own, where the kernel lets.

Linux lets a process without rights have namespaces in which it is root and may mount a disk in memory; nobody else sees
that mount, and it is gone with the child. Some systems forbid it (a container's filter, a distribution's setting):
`why_not` says so.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000  # of <linux/sched.h>
READ_ONLY, AGAIN, PRIVATE = 1, 32, 1 << 18 | 1 << 14  # of <linux/mount.h>: MS_RDONLY, MS_REMOUNT, MS_PRIVATE | MS_REC


def on_small_disk(place: Path, size: int, work: Callable[[], None]) -> None:
    """Runs it in a child in which the folder `place` is a disk of `size` bytes; AssertionError where it fails."""

    def there() -> None:
        _alone()
        _mount(place, size)
        work()

    in_child(there)


def in_child(work: Callable[[], None]) -> None:
    """Runs it in a child whose user, rights and mounts it may change; AssertionError where it fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "see the last line that was printed"


def make_read_only(place: Path) -> None:
    """The same disk, from now on read-only."""
    _mount(place, 0, READ_ONLY | AGAIN)


@cache
def why_not() -> str:
    """Why there are no such disks here, in words; "" where there are."""
    if sys.platform != "linux":
        return "no other system than Linux has disks for anybody"
    with TemporaryDirectory() as folder:
        try:
            on_small_disk(Path(folder), 1 << 16, lambda: (Path(folder) / "x").touch())
        except AssertionError:
            return "this system lets nobody without rights have mounts of their own"
    return ""


def _alone() -> None:
    """Gives this process a user and mounts of its own; it must have one thread."""
    user, group = os.getuid(), os.getgid()
    _asked(_libc().unshare(NEW_USER | NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    _asked(_libc().mount(b"none", b"/", None, PRIVATE, None))


def _mount(place: Path, size: int, flags: int = 0) -> None:
    options = f"size={size}".encode() if size else None
    _asked(_libc().mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, options))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _asked(answer: int) -> None:
    if answer:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
