"""Disks that are full, read-only, broken or closed to this user: a sentence, the old build untouched, nothing left.

`full` files stop at 20 sizes in 2 places, the target's folder and what the libraries use for temporary files; every
step of publishing fails once with each errno of ERRORS. Where the kernel lets anybody mount (`small_disks`), real disks
are full too; the long form fills them with real exports.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
from full_disks import mounted_cases, really_mounted_cases, refused
from ordeal import LONG, Case, in_lines, tally, try_all
from small_disks import in_child, on_small_disk, why_not
from stand_in import (
    TABLE,
    TEMPORARY,
    WEIGHTS,
    Steps,
    beside,
    failed,
    quick_disk,
    restored,
    stand_in,
    whole,
    without_exchange,
)

from fastvlm import publish, steps
from fastvlm.errors import FastVLMError, OutputError
from fastvlm.manifest import NAME
from fastvlm.publish import staged_folder
from fastvlm.scratch import temporary_in

ROW = "disk full, read-only, no permission"
ERRORS = {
    errno.ENOSPC: r"no space left for .* on the disk of .*: 0\.15 MB are needed, .* were written and .* free",
    errno.EDQUOT: r"quota on the disk of .* is used up .*: 0\.15 MB are needed, .* free",
    errno.EROFS: r"the disk of .* is read-only; mount it for writing",
    errno.EACCES: r"this user may not; change the permissions of",
    errno.EIO: r"the disk of .* reports a fault \(Input/output error\); check the disk",
}
NOBODY = 65534
SIZES = [
    *range(0, 60_000, 6_000),
    *range(60_000, 90_000, 3_000),
]  # bytes: 20, each too few for a file
assert len(SIZES) == 20
assert max(SIZES) < TEMPORARY
assert TABLE < WEIGHTS < TEMPORARY


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_disk(tmp_path_factory.mktemp("disk")) as folder:
        yield folder


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
    with refused(r"went beyond the largest of .* that this process is held to: 0\.15 MB are needed, .* are free"):
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
    """The step `number` fails: what had the name in that moment has it still, and the next run leaves nothing else."""
    folder = fresh(disk, f"{code} {number} {exchange} {old}", old)
    then: list[str | None] = []

    def word() -> str | None:
        return whole(folder / "build") if (folder / "build").exists() else None

    def refuse() -> None:
        then.append(word())
        raise OSError(code, os.strerror(code))

    with restored():
        if not exchange:
            without_exchange()
        steps.before = watch = Steps(refuse, number)
        said = ""
        try:
            stand_in(folder / "build", "new")
        except OutputError as error:
            said = str(error)
        if said:
            assert re.search(ERRORS[code], said), said
        else:
            assert watch.names[number - 1][0] in ("remove", "rename"), "a failure was swallowed"
            assert word() == "new"
            then = ["new"]
        assert word() == (then[0] or ("old" if old else None))
        steps.before = lambda *_: None
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

    def there() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()

    in_child(there)


def closed_cases(disk: Path) -> list[Case]:
    """A folder that may not be written, and one that is closed while the work runs."""
    disk.chmod(0o777)

    def closed() -> None:
        folder = fresh(disk, "closed")
        folder.chmod(0o555)

        def work() -> None:
            with refused("may not be written by this user|Permission denied"):
                stand_in(folder / "build", "new")

        as_nobody(work)
        folder.chmod(0o755)
        untouched(folder)

    def closed_meanwhile() -> None:
        folder = disk / "closed meanwhile"

        def work() -> None:
            fresh(disk, folder.name)
            with refused("this user may not; change the permissions of"):
                stand_in(folder / "build", "new", stop=lambda: folder.chmod(0o555))
            folder.chmod(0o755)
            assert whole(folder / "build") == "old"
            stand_in(folder / "build", "new")
            assert beside(folder) == ["build"]

        as_nobody(work)
        shutil.rmtree(folder)

    return [("a closed folder", closed), ("a folder that is closed meanwhile", closed_meanwhile)]


def lying_cases(disk: Path) -> list[Case]:
    """A disk that keeps less than it was given, and says nothing: what lies there is looked at before the swap."""

    def cut(name: str, number: int) -> None:
        folder = fresh(disk, f"cut {name} {number}")
        seen = 0

        def before(step: str, path: Path) -> None:
            nonlocal seen
            if step == "sync" and path.name == name:
                seen += 1
                if seen == number:
                    os.truncate(path, path.stat().st_size // 2)

        with restored():
            steps.before = before
            with pytest.raises(FastVLMError):
                stand_in(folder / "build", "new")
            assert seen >= number
        untouched(folder)

    once = [(name, 1) for name in ("manifest.json", "tokenizer.json")]
    twice = [(name, number) for name in ("weight.bin", "embeddings.bin", "Manifest.json") for number in (1, 2)]
    return [(f"{name} is cut at its sync {number}", partial(cut, name, number)) for name, number in once + twice]


def coremltools_cases(disk: Path) -> list[Case]:
    """coremltools' own writer, which tells nothing of a disk (found: "Unknown error"): one small graph of ours."""
    import torch

    from export.contract import FunctionSpec, TensorSpec
    from export.convert import converted, trace
    from export.quiet import import_coremltools

    import_coremltools()
    side = 200  # a weight of 80,000 bytes
    x, y = (TensorSpec(name, (1, side), "float16", "") for name in "xy")
    traced, spec = trace(torch.nn.Linear(side, side, bias=False), ((1, side),)), FunctionSpec("main", (x,), (y,))

    def writes(most: int) -> None:
        limited(most)
        try:
            with staged_folder(disk / "graph", False, needed=150_000) as stage, temporary_in(stage):
                with converted(traced, spec):
                    pass
                (stage / NAME).write_text("{}")
        finally:
            unlimited()

    def refuses() -> None:
        with refused(r"went beyond the largest of 0\.06 MB that this process is held to: 0\.15 MB are needed"):
            writes(60_000)
        assert not (disk / "graph").exists()

    return [("coremltools cannot write", refuses)]


def real_cases(disk: Path) -> list[Case]:
    """Real exports, to Core ML and to ONNX, for which no file may be long enough."""
    import export.onnx.build
    from export import export
    from export.quiet import import_coremltools

    import_coremltools()

    def real(name: str, most: int, **asked: object) -> None:
        limited(most)
        with refused(r"went beyond the largest of 0\.\d\d MB that this process is held to: 0\.\d\d GB are needed"):
            export("tiny", disk / name, only="encoder", image_sizes=[64], **asked)
        unlimited()
        assert not (disk / name).exists()

    return [
        ("coremltools cannot write", partial(real, "coreml", 60_000)),
        ("an ONNX file cannot be written", partial(real, "onnx", 100_000, format="onnx")),
    ]


def test_no_disk_costs_a_build(disk: Path, tmp_path: Path) -> None:
    cases = [
        *size_cases(disk), *step_cases(disk), *closed_cases(disk), *lying_cases(disk), *coremltools_cases(disk),
        *(real_cases(disk) if LONG else ()),
    ]  # fmt: skip
    found: list[Case] = []
    if not why_not():
        (tmp_path / "small").mkdir()
        found = mounted_cases(tmp_path / "small")
        if LONG:
            found += really_mounted_cases(tmp_path / "small")
    outcomes = try_all(cases + found)
    tally(ROW, outcomes, sizes_and_places=len(size_cases(disk)), mounted_disks=len(found))
    assert not failed(outcomes), in_lines(failed(outcomes))


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_disk_that_is_full_is_really_full(tmp_path: Path) -> None:
    def fills() -> None:
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "file").write_bytes(bytes(100_000))

    on_small_disk(tmp_path, 65_536, fills)
    assert beside(tmp_path) == [], "nobody else sees that disk"


@contextmanager
def nowhere_else(_: Path) -> Iterator[None]:
    """What `temporary_in` must not be."""
    yield


def unseen(stage: Path, place: Path, _: object, may_go: Callable[[], None]) -> None:
    """What taking a name must not be: nothing is opened again."""
    publish.forget(stage)
    publish.swap(stage, place, may_go)


def small_cases(disk: Path) -> list[Case]:
    """The really full disks, where there are any; else files that may not be long."""
    if why_not():
        return size_cases(disk)
    (disk / "small").mkdir()
    return mounted_cases(disk / "small")


BROKEN: dict[str, tuple[str, object, Callable[[Path], list[Case]]]] = {
    "errors stay what they are": ("fastvlm.publish.output_error", lambda *_, **__: None, step_cases),
    "temporary files anywhere": ("stand_in.temporary_in", nowhere_else, size_cases),
    "nothing is opened again": ("fastvlm.publish._take_name", unseen, lying_cases),
    "a stage stays": ("fastvlm.steps.remove", lambda *_, **__: None, size_cases),
    "a full disk's words": ("fastvlm.publish.output_error", lambda *_, **__: None, small_cases),
    "coremltools' words": ("export.convert._faults_of_the_disk", nullcontext, coremltools_cases),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_suite_sees_what_is_broken(disk: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    name, instead, cases_of = BROKEN[broken]
    folder = disk / broken
    folder.mkdir()
    cases = cases_of(folder)
    monkeypatch.setattr(name, instead)
    assert failed(try_all(cases[:: max(1, len(cases) // 12)]))
