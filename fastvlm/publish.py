"""Putting a finished folder or file into its place in one step, so that nobody ever sees half of one.

The work happens under a hidden name beside the target (same file system), which says whose it is (`fastvlm.owners`).
Only when it is complete, on the disk, and found there as it was meant, does it take the target's name; an older build
is exchanged with it atomically, so the name always leads to a whole build. A failure removes the stage; a killed
process cannot, so the next run removes what dead ones left. Locks are held where there are any, and nothing depends on
them. Every change of the disk is one of `fastvlm.steps`.
Work that is made of parts (`fastvlm.parts`) asks to `resume`: an interrupt then leaves a stage that holds finished
parts, and the next such run goes on in the stage of a dead one instead of removing it.
Where the file system cannot exchange two folders, the older build steps aside under a name that is never taken for a
stage: a run that is killed just then loses the new build, and the next run puts the older one back.

`--overwrite` replaces only what this tool made, and nothing that others put into it: `-o ~ --overwrite` must not cost
anyone a home folder. It knows nothing of what a build contains; `is_ours` says so where other folders are published.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastvlm import steps
from fastvlm.errors import OutputError
from fastvlm.manifest import holds_build_alone
from fastvlm.owners import beside, claim, give_up, hidden, hold, is_left, lock, release
from fastvlm.parts import RECORDS, forget, holds_parts, tidy
from fastvlm.progress import SILENT, Progress
from fastvlm.swap import swap
from fastvlm.write_errors import output_error

_TRIES = 100  # to make a stage, whose parent another run, one that fails, may take back meanwhile


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
    needed: int = 0,
    check: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well, and vanishes when it does not.

    With `resume` the folder may hold finished parts of a run that was interrupted, for `fastvlm.parts.Parts`, and stays
    when this run is (KeyboardInterrupt, SystemExit) and holds some; the exception's note then says so.
    `needed` bytes are what a full disk's message tells. `check` opens again what lies on the disk and raises a
    FastVLMError for anything that is not as it was meant; without it, `is_ours` must know it again.
    Raises OutputError as `check_output` does, and for a disk that is full, read-only, faulty or not to be written.
    """
    _put_back(Path(target).expanduser())
    place = check_output(target, overwrite, is_ours)
    made: list[Path] = []
    try:
        stage, handle = (_stage_of_the_dead(place) if resume else None) or _new_stage(place, made)
        kept = False
        try:
            _remove_left(place, "stage")
            _remove_left(place, "older")  # of a run that was killed when its new build already had the name
            yield stage
            with progress.stage("Bringing it to the disk"):
                steps.sync_tree(stage)
            _take_name(stage, place, check or _known(is_ours), lambda: _check_existing(place, overwrite, is_ours))
            made = []
        except BaseException as end:
            kept = resume and not isinstance(end, Exception) and holds_parts(stage)
            if kept:
                _keep(stage, place, end)
            if named := _named(end, stage, place, needed):
                raise named from end
            raise
        finally:
            try:
                if not kept:
                    steps.remove(stage, strict=False)  # the failed work, or the build that was replaced
            finally:
                release(stage)
                os.close(handle)
    except OSError as problem:
        if named := output_error(problem, place, needed=needed):
            raise named from problem
        raise
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def kept_bytes(place: Path) -> int:
    """Returns the bytes that earlier, dead runs left for `place`: the next run takes them over or gives them back."""
    return sum(_bytes_in(stage) for stage in beside(place, "stage") if is_left(stage))


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Yield a name for a new file, which replaces `path` when the block ends well; OutputError where the disk refuses.

    Readers see the old bytes or the new ones, never a part.
    """
    place = Path(path)
    stage = hold(hidden(place, "stage"))
    try:
        _remove_left(place, "stage")
        yield stage
        steps.sync(stage)
        steps.rename(stage, place)
        steps.sync(place.parent)
    except OSError as problem:
        if named := output_error(problem, place):
            raise named from problem
        raise OutputError(f"cannot write {place} ({problem.strerror}); check the disk and its permissions") from problem
    finally:
        steps.remove(stage, strict=False)
        release(stage)


def replace_file(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically: readers see the old bytes or the new ones, never a part; OutputError if not."""
    with staged_file(path) as stage:
        write_whole(stage, data)


def write_whole(path: Path, data: bytes) -> None:
    """Write a new file; OutputError where the disk keeps less than that."""
    steps.write(path, data)
    if (kept := path.stat().st_size) != len(data):
        raise OutputError(f"{path}: the disk kept {kept:,} of {len(data):,} bytes; check the disk")


def remove_folder(folder: Path) -> None:
    """Take a folder away, if it is there: its name at once, so that nobody finds half of it; OutputError if not."""
    gone = hold(hidden(folder, "stage"))
    try:
        with suppress(FileNotFoundError):
            steps.rename(folder, gone)
            steps.remove(gone, strict=False)
    except OSError as problem:
        if named := output_error(problem, folder):
            raise named from problem
        raise OutputError(f"cannot remove {folder} ({problem.strerror}); check its permissions") from problem
    finally:
        release(gone)


def _real_place(asked: Path) -> Path:
    """Where a write to `asked` ends up: links are followed, so the link stays and the folder behind it changes."""
    if asked.is_symlink() and not asked.exists():
        raise OutputError(f"{asked} is a link that leads nowhere; remove it or choose another place with -o")
    return asked.resolve()


def _check_existing(place: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raises OutputError where what is there may not be replaced; another run may replace it while it is looked at."""
    for _ in range(_TRIES):
        before = _identity(place)
        try:
            if before is not None:
                _check_replaceable(place, overwrite, is_ours)
            return
        except (OSError, OutputError):
            if _identity(place) == before:
                raise
    raise OutputError(f"{place} changes all the time, other runs write there too; choose another place with -o")


def _identity(place: Path) -> tuple[int, int] | None:
    """What tells one folder from another that takes its name; None where there is none."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check_replaceable(place: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
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


def _make_parents(parent: Path, made: list[Path]) -> None:
    """Create what is missing above the target, and add it to `made`, outermost first, so that a failure can undo it.

    FileNotFoundError where another run that fails takes a parent back at this moment.
    """
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for folder in reversed(missing):
        try:
            steps.make(folder, there=True)
        except FileNotFoundError:
            raise
        except OSError as problem:
            if named := output_error(problem, folder):
                raise named from problem
            raise OutputError(f"cannot make {folder} ({problem.strerror}); choose another place with -o") from problem
        made.append(folder)


def _new_stage(place: Path, made: list[Path]) -> tuple[Path, int]:
    """A new folder beside `place`, held, and the file descriptor of its lock; parents that it makes go to `made`."""
    for _ in range(_TRIES):
        stage = hold(hidden(place, "stage"))
        try:
            _make_parents(place.parent, made)
            steps.make(stage)  # not mkdtemp: its mode 0700 would stay on the published build
            return stage, lock(stage)
        except FileNotFoundError:  # another run took back its parents, or took this for what a dead one left
            release(stage)
        except BaseException:
            steps.remove(stage, strict=False)
            release(stage)
            raise
    raise OutputError(f"{place.parent} vanishes whenever it is made; choose another place with -o")


def _stage_of_the_dead(place: Path) -> tuple[Path, int] | None:
    """The latest stage beside `place` that an interrupted run left with finished parts in it, and its lock; or None.

    Only this user's, because anybody may know what a part should be.
    """
    for left in sorted(beside(place, "stage"), key=_when_recorded, reverse=True):
        with suppress(OSError):
            if (
                left.lstat().st_uid != os.geteuid()
                or not holds_parts(left)
                or not (mine := claim(left, place, "stage"))
            ):
                continue
            stage, handle = mine
            try:
                tidy(stage)
                return stage, handle
            except BaseException:  # it cannot be tidied
                steps.remove(stage, strict=False)
                release(stage)
                os.close(handle)
                raise
    return None


def _when_recorded(stage: Path) -> int:
    try:
        return (stage / RECORDS).lstat().st_mtime_ns
    except OSError:
        return 0


def _keep(stage: Path, place: Path, end: BaseException) -> None:
    """Leaves the finished parts alone in the stage of an interrupted run; `end` says where they are."""
    left = stage
    try:
        with suppress(OSError):  # what cannot be removed now, nor after a second interrupt, the next run removes
            tidy(stage)
            left = give_up(stage, place, "stage")
    finally:
        end.add_note(f"the finished parts are kept in {left}, and the same command goes on with them")


def _remove_left(place: Path, kind: str) -> None:
    """Removes what dead runs left beside `place`."""
    for left in beside(place, kind):
        if mine := claim(left, place, "stage"):  # half of a folder must not be found under the name of an older one
            steps.remove(mine[0], strict=False)
            release(mine[0])
            os.close(mine[1])


def _put_back(asked: Path) -> None:
    """Undoes what a run left that was killed between two renames: the older build gets its name back."""
    with suppress(OSError, OutputError):  # what is wrong with the place itself, `check_output` says
        place = _real_place(asked)
        for older in beside(place, "older"):
            if is_left(older) and not os.path.lexists(place):
                steps.rename(older, place)


def _take_name(stage: Path, place: Path, check: Callable[[Path], None], may_go: Callable[[], None]) -> None:
    """The finished stage becomes `place`, once it is found on the disk as it was meant."""
    if os.path.lexists(place):
        may_go()  # before the records of what is finished go
    forget(stage)
    check(stage)
    swap(stage, place, may_go)
    steps.sync(place.parent)


def _known(is_ours: Callable[[Path], bool]) -> Callable[[Path], None]:
    """What is checked where nothing else is: that the next run would know the folder for one of this tool's."""

    def check(stage: Path) -> None:
        if any(stage.iterdir()) and not is_ours(stage):
            raise OutputError(
                f"what was written into {stage} is not there as it was meant; check the disk, and type the same "
                "command again"
            )

    return check


def _named(end: BaseException, stage: Path, place: Path, needed: int) -> OutputError | None:
    """The sentence for what ended the work, if the disk did, or somebody who took the stage away."""
    if not isinstance(end, Exception) or isinstance(end, OutputError):
        return None
    if named := output_error(end, place, needed=needed, written=_bytes_in(stage)):
        return named
    if isinstance(end, FileNotFoundError) and not os.path.lexists(stage):
        return OutputError(f"{stage} was removed while the work ran in it; type the same command again")
    return None


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
