"""Disks that are full, read-only, broken or closed to this user: a sentence, the old build untouched, nothing left.

`full` files stop at 20 sizes in 2 places, the target's folder and what the libraries use for temporary files; every
step of publishing fails once with each errno of ERRORS. Where root may mount, the long form fills real disks with real
exports.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from ordeal import LONG, Case, in_lines, tally, try_all
from stand_in import TABLE, TEMPORARY, WEIGHTS, Steps, beside, quick_disk, restored, stand_in, whole, without_exchange

from fastvlm import steps
from fastvlm.errors import FastVLMError, OutputError

ROW = "disk full, read-only, no permission"
ERRORS = {
    errno.ENOSPC: r"no space left for .* on the disk of .*: 0\.15 MB are needed, .* were written and .* free",
    errno.EDQUOT: r"quota on the disk of .* is used up .*: 0\.15 MB are needed, .* free",
    errno.EROFS: r"the disk of .* is read-only; mount it for writing",
    errno.EACCES: r"this user may not; change the permissions of",
    errno.EIO: r"the disk of .* reports a fault \(Input/output error\); check the disk",
}
NOBODY = 65534
SIZES = [*range(0, 60_000, 6_000), *range(60_000, 90_000, 3_000)]  # bytes: 20, each too few for some file of the stand-in
assert len(SIZES) == 20
assert max(SIZES) < TEMPORARY
assert TABLE < WEIGHTS < TEMPORARY


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_disk(tmp_path_factory.mktemp("disk")) as folder:
        yield folder


@contextmanager
def refused(words: str) -> Iterator[None]:
    """The block must end with an OutputError that says so."""
    try:
        yield
    except OutputError as error:
        assert re.search(words, str(error)), str(error)
        return
    raise AssertionError("it was not refused")


def fresh(disk: Path, name: str, old: bool = True) -> Path:
    """A folder with the old build in it."""
    folder = disk / name
    folder.mkdir()
    if old:
        stand_in(folder / "build", "old")
    return folder


def untouched(folder: Path) -> None:
    assert whole(folder / "build") == "old"
    assert beside(folder) == ["build"]
    stand_in(folder / "build", "new")
    assert whole(folder / "build") == "new"
    shutil.rmtree(folder)


def limited(size: int) -> None:
    """No file of this process may have more bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def full_target(disk: Path, size: int) -> None:
    folder = fresh(disk, f"target {size}")
    limited(size)
    with refused(r"went beyond the largest of .* MB that this process is held to: 0\.15 MB are needed, .* are free"):
        stand_in(folder / "build", "new")
    unlimited()
    untouched(folder)


def full_temporary(disk: Path, size: int) -> None:
    """What the system gives for temporary files cannot even be written: they lie in the stage."""
    folder = fresh(disk, f"temporary {size}")
    place = folder.parent / f"full {size}"
    place.touch()
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    try:
        stand_in(folder / "build", "newer")
        assert (os.environ["TMPDIR"], tempfile.tempdir) == (str(place), str(place))
        assert whole(folder / "build") == "newer"
        stand_in(folder / "build", "old")
        limited(size)
        with refused("went beyond the largest"):
            stand_in(folder / "build", "new")
    finally:
        unlimited()
        tempfile.tempdir = before[1]
        os.environ.pop("TMPDIR") if before[0] is None else os.environ.update(TMPDIR=before[0])
    place.unlink()
    untouched(folder)


def size_cases(disk: Path) -> list[Case]:
    return [
        (f"{place.__name__} of {size:,} bytes", partial(place, disk, size))
        for place in (full_target, full_temporary)
        for size in SIZES
    ]


def fails(disk: Path, code: int, number: int, exchange: bool, old: bool) -> None:
    """The step `number` fails; after the exchange the new build is there, before it the old one or none."""

    def refuse() -> None:
        raise OSError(code, os.strerror(code))

    folder = fresh(disk, f"{code} {number} {exchange} {old}", old)
    with restored():
        if not exchange:
            without_exchange()
        steps.before = watch = Steps(refuse, number)
        try:
            stand_in(folder / "build", "new")
        except OutputError as error:
            assert re.search(ERRORS[code], str(error)), str(error)
        else:
            assert watch.names[-1][0] == "remove", "a failure was swallowed"
        steps.before = lambda *_: None
        found = whole(folder / "build") if (folder / "build").exists() else None
        assert found in ("new", "old") if old else ("new", None)
        swapped = [step for step, path in watch.names if path == folder / "build"]
        assert (found == "new") == bool(swapped and number > len(watch.names) - 3), (found, watch.names[-3:])
        stand_in(folder / "build", "newer")
        assert whole(folder / "build") == "newer"
        assert beside(folder) == ["build"]
        shutil.rmtree(folder)


def steps_of(disk: Path, exchange: bool, old: bool) -> int:
    folder = fresh(disk, "counted", old)
    with restored():
        if not exchange:
            without_exchange()
        steps.before = watch = Steps()
        stand_in(folder / "build", "new")
        shutil.rmtree(folder)
    return watch.seen


def step_cases(disk: Path) -> list[Case]:
    """Every step fails, each with the next errno."""
    codes = list(ERRORS)
    return [
        (f"step {number} {errno.errorcode[code]} exchange={exchange} old={old}",
         partial(fails, disk, code, number, exchange, old))
        for exchange, old in ((True, True), (True, False), (False, True))
        for number in range(1, steps_of(disk, exchange, old) + 1)
        for code in (codes[number % len(codes)],)
    ]  # fmt: skip


def as_nobody(work: Callable[[], None]) -> None:
    """Runs it in a child without any rights, where this is root; AssertionError where it fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def closed_cases(disk: Path) -> list[Case]:
    """A folder that may not be written; one that is closed while the work runs; a build that may not be replaced."""

    def folder_of(name: str) -> Path:
        folder = fresh(disk, name)
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        return folder

    def closed() -> None:
        folder = folder_of("closed")
        folder.chmod(0o555)
        with refused("may not be written by this user"):
            stand_in(folder / "build", "new")

    def closed_meanwhile() -> None:
        folder = folder_of("closed meanwhile")
        with refused("this user may not; change the permissions of"):
            stand_in(folder / "build", "new", stop=lambda: next(folder.glob(".build.*")).chmod(0o555))
        next(folder.glob(".build.*"), folder).chmod(0o755)

    def check(name: str, work: Callable[[], None]) -> None:
        disk.chmod(0o777)
        as_nobody(work)
        (disk / name).chmod(0o777)
        assert whole(disk / name / "build") == "old"

    return [
        ("a closed folder", lambda: _made_by_nobody(disk, "closed", closed)),
        ("closed meanwhile", lambda: _made_by_nobody(disk, "closed meanwhile", closed_meanwhile)),
    ]


def _made_by_nobody(disk: Path, name: str, work: Callable[[], None]) -> None:
    raise NotImplementedError
