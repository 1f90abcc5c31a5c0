"""What a call may take: no more memory than is free, so that an op that asks for more fails and the machine goes on.

A program of a few kilobytes can ask for any number of bytes (`fill`, `tile`, a product of a column and a row). Linux
gives out more than it has and ends a process when that shows, perhaps another one. While strangers' programs are loaded
and run, the data of this process may therefore grow by what is free and no further (RLIMIT_DATA, which counts memory of
one's own and no shared file); what goes beyond fails as an allocation, and the caller names the op.

It holds for the whole process, other threads' memory included: a process that wants more than is free is in need in
any case. Elsewhere than on Linux nothing is limited: macOS has no such limit that it keeps to.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

STATUS, MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_LOCK = threading.Lock()
_inside = 0  # calls that are in their `with`
_before = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@contextmanager
def within_memory() -> Iterator[None]:
    """While inside, this process's data may grow by `free_bytes`, counted when the first of several calls begins."""
    if sys.platform != "linux":
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def free_bytes() -> int:
    """Memory that nobody uses, with swap, in bytes; of a control group with a limit what this process leaves of it."""
    machine = _field(MEMORY, "MemAvailable") + _field(MEMORY, "SwapFree")
    return max(0, min(machine, _most_memory() - _field(STATUS, "RssAnon")))


def expect_mapped(count: int) -> None:
    """Lets the data of this process grow by `count` bytes more: a file that will be mapped, whose pages it backs.

    A private mapping counts as data, whether or not anything is written to it.
    """
    with _LOCK:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA) if _inside else _before
        if _inside and soft != resource.RLIM_INFINITY and soft != _before[0]:
            resource.setrlimit(resource.RLIMIT_DATA, (soft + count, hard))


@cache
def _most_memory() -> int:
    """Read once: a limit that changes meanwhile is not seen, and a call costs 0.1 ms instead of 0.4 ms."""
    return 2 * half_of_memory()


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process, in bytes (Linux)."""
    return _field(STATUS, "VmData")


def _enter() -> None:
    global _inside, _before
    with _LOCK:
        _inside += 1
        if _inside > 1:
            return
        _before = resource.getrlimit(resource.RLIMIT_DATA)
        soft, hard = _before
        most = data_bytes() + free_bytes()
        if soft == resource.RLIM_INFINITY or most < soft:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _leave() -> None:
    global _inside
    with _LOCK:
        _inside -= 1
        if not _inside:
            resource.setrlimit(resource.RLIMIT_DATA, _before)


def _field(file: Path, name: str) -> int:
    """Bytes of a field of a file that has kilobytes; 0 where it has none of that name."""
    lines = file.read_text("ascii", "replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def half_of_memory() -> int:
    """Half of the machine's memory in bytes, or of the least limit that a control group (Linux) sets this process."""
    return min([_machine_memory(), *_group_limits()]) // 2


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limits() -> Iterator[int]:
    """The memory limits of this process's control group and of those around it, both versions of the interface."""
    for line in _text(_OWN_GROUPS).splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = PurePosixPath(place.lstrip("/"))
        for group in (inner, *inner.parents):
            limit = _text(root / group / name).strip()
            if limit.isdecimal():  # "max": no limit
                yield int(limit)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no Linux, or a group that only the host sees
        return ""
