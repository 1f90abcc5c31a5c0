"""Hidden names beside a target that say whose they are, so that what a dead process left is told from living work.

`.NAME.KIND-<32 hex digits>`: the machine (8 digits of a hash), the process (8), when it began (8 of a hash, the boot
included), and 8 by chance. Whoever finds such a name looks whether that process still lives; no lock is needed for it.
What somebody left is claimed by a rename to a name of one's own, which succeeds for one process alone.

A lock (`flock`) is held where the file system has them. One that is held tells that a folder is in use whatever its
name says; one that is free tells it of names that cannot be judged here: those of another machine or container, and
those of older versions, which have 16 digits. Where there are no locks, these count as left after a day without
a change. Such a judgement may be wrong: then the run that lost its stage ends with an error, and no build is touched.
On a Mac the beginning of a process is not read, so a process that got the number of a dead one keeps its stage for it.
It does not know what the folders and files hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from fastvlm import steps

HIDDEN = r"(?:[0-9a-f]{16}){1,2}"  # what ends a hidden name, as a pattern
NOBODY = 0  # the process in a name that was given up
_LONGEST = 100  # bytes of a target's name in a hidden one: file systems take 255 in all
_ABANDONED = 24 * 3600  # seconds; no export is silent for that long
_held: set[str] = set()  # hidden names that this very process is using


def hidden(place: Path, kind: str) -> Path:
    """Returns a new hidden name beside `place` of this process: `stage` is being written, `older` stepped aside."""
    process = os.getpid()
    return _name(place, kind, f"{_machine()}{process:08x}{_life(process)}")


def hold(path: Path) -> Path:
    """Marks a hidden name as used by this process, until `release`; returns it."""
    _held.add(path.name)
    return path


def release(path: Path) -> None:
    """Ends `hold`."""
    _held.discard(path.name)


def give_up(path: Path, place: Path, kind: str) -> Path:
    """Renames what this process holds, so that any later one may claim it at once; returns its new name."""
    left = _name(place, kind, f"{NOBODY:024x}")
    steps.rename(path, left)
    release(path)
    return left


def beside(place: Path, kind: str) -> list[Path]:
    """Returns what `hidden` named beside `place`; a name that only begins like one is somebody else's."""
    name = re.compile(re.escape(f".{_short(place.name)}.{kind}-") + HIDDEN)
    try:
        return [entry for entry in place.parent.iterdir() if name.fullmatch(entry.name)]
    except OSError:  # no such parent yet, or one that may not be listed
        return []


def claim(left: Path, place: Path, kind: str) -> tuple[Path, int] | None:
    """Takes what a dead process left: its new name, held, and a file descriptor with its lock. None if it is in use."""
    with _opened(left) as handle:
        if handle is None or not _is_left(left, handle):
            return None
        mine = hold(hidden(place, kind))
        try:
            steps.rename(left, mine)
            return mine, os.dup(handle)
        except OSError:  # another run was first, or it is not ours to rename
            release(mine)
            return None
        except BaseException:
            release(mine)
            raise


def is_left(path: Path) -> bool:
    """Whether what a hidden name leads to is nobody's any more."""
    with _opened(path) as handle:
        return handle is not None and _is_left(path, handle)


def is_abandoned(path: Path) -> bool:
    """Whether a plain file of this user whose name tells no process counts as left: unchanged for a day."""
    status = path.lstat()
    mine = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    return mine and time.time() - status.st_mtime > _ABANDONED


def lock(path: Path) -> int:
    """Opens a folder or file and holds its lock as far as there are locks; returns the file descriptor."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    _take(handle)
    return handle


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _take(handle: int) -> bool | None:
    """Takes a lock: True; False where another holds it, None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_left(path: Path, handle: int) -> bool:
    locked = _take(handle)
    if locked is False or path.name in _held:
        return False
    digits = path.name.rpartition("-")[2]
    machine, process, life = digits[:8], int(digits[8:16], 16), digits[16:24]
    if len(digits) == 32 and process == NOBODY:
        return True
    if len(digits) == 32 and machine == _machine():
        return process == os.getpid() or not _lives(process, life)
    status = os.fstat(handle)
    locks = locked is True and stat.S_ISDIR(status.st_mode)  # nobody locks a file that is being written
    return locks or time.time() - status.st_mtime > _ABANDONED


def _lives(process: int, life: str) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    found = _life(process)
    return life in (found, _unknown_life()) or found == _unknown_life()


def _name(place: Path, kind: str, owner: str) -> Path:
    return place.parent / f".{_short(place.name)}.{kind}-{owner}{secrets.token_hex(4)}"


def _short(name: str) -> str:
    """A target's name as it stands in a hidden one; where it is too long, a hash tells it from others that begin so."""
    data = os.fsencode(name)
    if len(data) <= _LONGEST:
        return name
    return data[: _LONGEST - 17].decode("utf-8", "ignore") + "-" + hashlib.sha256(data).hexdigest()[:16]


@cache
def _machine() -> str:
    """Tells this machine, and this container on it, from others, in 8 hex digits."""
    known = [platform.node()]
    for file in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError):
            known.append(Path(file).read_text("ascii", "replace").strip())
    with suppress(OSError):  # processes are numbered anew in each name space
        known.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return _digits("|".join(known))


def _life(process: int) -> str:
    """Tells one run of a process from later ones of the same number, in 8 hex digits; `_unknown_life` if it cannot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        state, *fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return _unknown_life()
    if state in (b"Z", b"X"):  # dead, only its parent has not asked yet
        return _digits("dead")
    return _digits(f"{boot}|{fields[18].decode()}")  # its start in ticks since the boot (proc_pid_stat(5), field 22)


@cache
def _unknown_life() -> str:
    return _digits("")


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
