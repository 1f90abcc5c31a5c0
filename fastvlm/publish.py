"""Putting a finished folder into its place in one step, so that nobody ever sees half of one.

The work happens in a hidden folder beside the target (same file system, unguessable name). Only when it is
complete and on the disk does it take the target's name; an older build is exchanged with it atomically, so the
name always leads to a whole build. A failure removes the stage; a killed process cannot, so every stage is held
under a lock (`flock`) and the next run removes stages whose lock is free, that is, whose owner is dead.
Work that is made of parts (`fastvlm.parts`) asks to `resume`: an interrupt then leaves a stage that holds finished
parts, and the next such run goes on in the stage of a dead one instead of removing it.
Where the file system cannot exchange two folders, the older build steps aside under a name that is never taken for a
stage: a run that is killed just then loses the new build, and the next run puts the older one back (where there are
locks; without them it stays beside the target, under `.NAME.older-…`).

`--overwrite` replaces only what this tool made, and nothing that others put into it: `-o ~ --overwrite` must not cost
anyone a home folder. It knows nothing of what a build contains; `is_ours` says so where other folders are published.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastvlm.durable import NOT_SUPPORTED, sync, sync_tree
from fastvlm.errors import OutputError
from fastvlm.manifest import holds_build_alone
from fastvlm.parts import RECORDS, forget, holds_parts, tidy
from fastvlm.progress import SILENT, Progress

_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h on macOS
_AT_FDCWD = -100
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_output(target: str | Path, overwrite: bool, is_ours: Callable[[Path], bool] = holds_build_alone) -> Path:
    """Decide before the work starts whether `target` may be written, and where it really lies (links resolved).

    Raises OutputError: it exists (and `overwrite` is off, or it is nothing that this tool made), it is a file,
    a link that leads nowhere, or its place cannot be written.
    """
    asked = Path(target).expanduser()
    try:
        place = _real_place(asked)
        if os.path.lexists(place):
            _check_existing(place, overwrite, is_ours)
        _check_parent(place)
    except OSError as problem:
        raise OutputError(f"cannot write {asked} ({problem.strerror}); choose another place with -o") from problem
    return place


def check_apart(
    place: str | Path,
    sources: Iterable[str | Path | None],
    option: str = "-o",
    *,
    replaced: bool = True,
    kind: str = "checkpoint",
) -> None:
    """Raises OutputError where `place` is a checkpoint's folder or lies in one: nothing is written among its files.

    `replaced` also refuses a place that holds one, since it would go when the place is replaced. `sources` are the
    checkpoints' folders, None for those that there are not; `option` is the one to choose another place with, `kind`
    what the sources are called.
    """
    real = Path(place).expanduser().resolve()
    for source in sources:
        folder = Path(source).expanduser().resolve() if source else None
        if folder is None or not folder.is_dir():
            continue
        if real == folder or folder in real.parents or (replaced and real in folder.parents):
            raise OutputError(f"{real} and the {kind} {source} lie in each other; choose another place with {option}")


@contextmanager
def staged_folder(
    target: str | Path,
    overwrite: bool,
    is_ours: Callable[[Path], bool] = holds_build_alone,
    progress: Progress = SILENT,
    *,
    resume: bool = False,
) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well, and vanishes when it does not.

    With `resume` the folder may hold finished parts of a run that was interrupted, for `fastvlm.parts.Parts`, and stays
    when this run is (KeyboardInterrupt, SystemExit) and holds some; the exception's note then says so.
    Raises OutputError as `check_output` does, and when the disk is full.
    """
    _put_back(Path(target).expanduser())
    place = check_output(target, overwrite, is_ours)
    made = _make_parents(place.parent)
    try:
        stage, lock = (_stage_of_the_dead(place) if resume else None) or _new_stage(place)
        kept = False
        try:
            _remove_stale(place, "stage")
            _remove_stale(place, "older")  # of a run that was killed when its new build already had the name
            yield stage
            with progress.stage("Bringing it to the disk"):
                sync_tree(stage)
            if os.path.lexists(place):
                _check_existing(place, overwrite, is_ours)  # before the records of what is finished go
            forget(stage)
            if os.path.lexists(place):
                _check_existing(place, overwrite, is_ours)
                _exchange(stage, place)
            else:
                os.rename(stage, place)
            sync(place.parent)
            made = []
        except BaseException as end:
            kept = resume and not isinstance(end, Exception) and holds_parts(stage)
            if kept:
                _keep(stage, end)
            raise
        finally:
            if not kept:
                shutil.rmtree(stage, ignore_errors=True)  # the failed work, or the build that was replaced
            os.close(lock)
    except OSError as problem:
        raise _as_output_error(problem, place) from problem
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def kept_bytes(place: Path) -> int:
    """Returns the bytes that earlier, dead runs left for `place`: the next run takes them over or gives them back."""
    kept = 0
    for stage in _hidden_folders(place, "stage"):
        with _locked(stage) as free:
            kept += sum(file.lstat().st_size for file in stage.rglob("*") if file.is_file()) if free else 0
    return kept


def replace_file(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically: readers see the old bytes or the new ones, never a part; OutputError if not."""
    place = Path(path)
    stage = place.parent / f".{place.name[:100]}.stage-{secrets.token_hex(8)}"
    try:
        try:
            with open(stage, "xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(stage, place)
        finally:
            stage.unlink(missing_ok=True)
    except OSError as problem:
        raise OutputError(f"cannot write {place} ({problem.strerror}); check the disk and its permissions") from problem


def _real_place(asked: Path) -> Path:
    """Where a write to `asked` ends up: links are followed, so the link stays and the folder behind it changes."""
    if asked.is_symlink() and not asked.exists():
        raise OutputError(f"{asked} is a link that leads nowhere; remove it or choose another place with -o")
    return asked.resolve()


def _check_existing(place: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    if not stat.S_ISDIR(place.lstat().st_mode):
        raise OutputError(f"{place} is a file, expected a folder or nothing there; choose another place with -o")
    if not overwrite:
        raise OutputError(f"{place} exists; add --overwrite to replace it, or choose another place with -o")
    if os.path.ismount(place):
        raise OutputError(f"{place} is a mounted disk and cannot be replaced; choose a folder inside it with -o")
    if any(place.iterdir()) and not is_ours(place):
        raise OutputError(
            f"{place} was not made by fastvlm, or holds files that others put there, so --overwrite does not replace "
            "it; choose another place with -o, or remove the folder yourself"
        )


def _check_parent(place: Path) -> None:
    """The nearest existing ancestor must be a folder that may be written."""
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so {place} cannot be made; choose another place with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} may not be written by this user; choose another place with -o")


def _make_parents(parent: Path) -> list[Path]:
    """Create what is missing above the target; returns it, outermost first, so that a failure can take it back."""
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    missing.reverse()
    for folder in missing:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as problem:
            raise OutputError(f"cannot make {folder} ({problem.strerror}); choose another place with -o") from problem
    return missing


def _hidden(place: Path, kind: str) -> Path:
    """A new hidden name beside `place`: `stage` is being written, `older` stepped aside for a new build."""
    return place.parent / f".{place.name[:100]}.{kind}-{secrets.token_hex(8)}"


def _hidden_folders(place: Path, kind: str) -> list[Path]:
    """The folders beside `place` that `_hidden` named; a name that only begins like one is somebody else's."""
    name = re.compile(re.escape(f".{place.name[:100]}.{kind}-") + "[0-9a-f]{16}")
    try:
        return [entry for entry in place.parent.iterdir() if name.fullmatch(entry.name)]
    except OSError:  # no such parent yet, or one that may not be listed
        return []


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds a folder's lock if it is free; yields whether it was, that is, whether no living run uses the folder."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)


def _new_stage(place: Path) -> tuple[Path, int]:
    """A new folder beside `place` and the file descriptor that holds its lock."""
    while True:
        stage = _hidden(place, "stage")
        stage.mkdir()  # not mkdtemp: its mode 0700 would stay on the published build
        lock = os.open(stage, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks: stages are then never taken for stale
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Another run may have taken the lock in between and removed the folder as stale: then start again.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), stage.stat()):
                return stage, lock
        os.close(lock)


def _stage_of_the_dead(place: Path) -> tuple[Path, int] | None:
    """The latest stage beside `place` that an interrupted run left with finished parts in it, and its lock; or None.

    Its owner is dead, because the lock was free; and it is this user's, because anybody may know what a part should be.
    """
    for stage in sorted(_hidden_folders(place, "stage"), key=_when_recorded, reverse=True):
        with suppress(OSError):
            lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _is_left(stage, lock):
                return stage, lock
            os.close(lock)
    return None


def _is_left(stage: Path, lock: int) -> bool:
    """Takes the lock and tells whether the stage is still there, this user's, and holds parts; if so, it is tidied."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(lock)
        found = status.st_uid == os.geteuid() and os.path.samestat(status, stage.stat()) and holds_parts(stage)
        if found:
            tidy(stage)
        return found
    except OSError:  # in use, or it cannot be tidied
        return False


def _when_recorded(stage: Path) -> int:
    try:
        return (stage / RECORDS).lstat().st_mtime_ns
    except OSError:
        return 0


def _keep(stage: Path, end: BaseException) -> None:
    """Leaves the finished parts alone in the stage of an interrupted run; `end` says where they are."""
    end.add_note(f"the finished parts are kept in {stage}, and the same command goes on with them")
    with suppress(OSError):  # what cannot be removed now, nor after a second interrupt, the next run removes
        tidy(stage)


def _remove_stale(place: Path, kind: str) -> None:
    for folder in _hidden_folders(place, kind):
        with _locked(folder) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def _put_back(asked: Path) -> None:
    """Undoes what a run left that was killed in `_exchange_in_two_steps`: the older build gets its name back."""
    with suppress(OSError):  # what is wrong with the place itself, `check_output` says
        place = _real_place(asked)
        for older in _hidden_folders(place, "older"):
            with _locked(older) as free:
                if free and not os.path.lexists(place):
                    os.rename(older, place)


def _exchange(stage: Path, place: Path) -> None:
    """Let the two folders trade names in one step; where the file system cannot, in two renames."""
    try:
        _rename_exchange(os.fsencode(stage), os.fsencode(place))
    except OSError as problem:
        if problem.errno not in NOT_SUPPORTED:
            raise
        _exchange_in_two_steps(stage, place)


def _rename_exchange(first: bytes, second: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(first, second, ctypes.c_uint(_RENAME_SWAP))
        else:
            failed = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE))
    except AttributeError as absent:  # a libc without the call
        raise OSError(errno.ENOSYS, "no atomic exchange of folders here") from absent
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _exchange_in_two_steps(stage: Path, place: Path) -> None:
    """Let the names pass on one after the other; whatever interrupts (Ctrl-C too), one whole build is at `place`."""
    older = _hidden(place, "older")
    with _locked(place):  # so that no other run takes the older build for one that was left behind
        try:
            os.rename(place, older)
            os.rename(stage, place)
        except BaseException:
            if os.path.lexists(older) and not os.path.lexists(place):
                os.rename(older, place)
            raise
        os.rename(older, stage)  # where the caller removes it


def _as_output_error(problem: OSError, place: Path) -> OSError | OutputError:
    """A full disk, and a target that changed meanwhile, are the user's to solve; other errors stay what they are."""
    if problem.errno in _NO_SPACE:
        free = shutil.disk_usage(place.parent if place.parent.exists() else "/").free
        return OutputError(f"no space left for {place} ({free / 1e9:.2f} GB free); free some, or choose another disk")
    if problem.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR} and os.path.lexists(place):
        return OutputError(f"{place} appeared while the work ran; add --overwrite, or choose another place with -o")
    return problem
