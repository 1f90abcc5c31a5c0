"""The same input in six other environments gives one hash; and many exports in one process leave nothing behind.

Real exports, of ONNX files: a tenth of a second each when their libraries are loaded. The hash seed of Python is set
when a process begins, so one environment has a process of its own. The long form repeats 50 real exports to ONNX and 50
of the encoder to Core ML, the short one as many of the stand-in.
"""

from __future__ import annotations

import locale
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest
from ordeal import LONG, STATUS, Case, give_back_free_memory, in_lines, tally, try_all
from real_exports import Count
from stand_in import beside, failed, quick_disk, stand_in

from fastvlm.hashes import hash_tree, sha256_bytes
from fastvlm.manifest import dump

SAME, MANY = "same input, other environment", "50 exports in one process"
GROWTH = 12 << 20  # bytes; measured 0.8 MB (ONNX), 2.5 MB (encoder) in 47 exports, 52 MB in 5 where torch keeps graphs
FIRST = 3  # exports after which all that is loaded once is loaded
ALONE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_hostile_repeat import exported
print(exported(Path(sys.argv[1])))
"""
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_disk(tmp_path_factory.mktemp("repeat")) as folder:
        yield folder


def exported(folder: Path) -> str:
    """The hash of an export of `tiny` to ONNX files."""
    from export import export

    return hash_of(export("tiny", folder / "build", format="onnx"))


def hash_of(build: Path) -> str:
    """The hash of a folder, of every file and name."""
    return sha256_bytes(dump({**hash_tree(build)}))


def elsewhere() -> None:
    os.environ.update(LANG="tr_TR.UTF-8", TZ="Pacific/Kiritimati", LC_NUMERIC="de_DE.UTF-8")
    time.tzset()
    for name in ("tr_TR.UTF-8", "de_DE.UTF-8", "C"):  # as far as this machine has them
        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, name)
            return


def careful() -> None:
    os.umask(0o077)


def many_threads() -> None:
    import torch

    torch.set_num_threads(3)


def homeless() -> None:
    os.chdir("/")
    os.environ.pop("HOME", None)
    os.environ["USER"] = "nobody"


def other_temporary(folder: Path) -> None:
    place = folder / "ein Örtchen"
    place.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)


def environment_cases(disk: Path, expected: str, count: Count, make: Callable[[Path], str] = exported) -> list[Case]:
    """One export in each environment, by `make`; the hash must be `expected`."""

    def here(name: str, change: Callable[[], None]) -> None:
        folder = disk / name
        folder.mkdir()
        change()
        assert make(folder) == expected

    def alone() -> None:
        folder, temporary = disk / "alone", disk / "alone temporary"
        folder.mkdir()
        temporary.mkdir()
        count.one_more()  # that process has nobody who counts
        command = [sys.executable, "-P", "-c", ALONE, str(folder), str(Path(__file__).parent)]
        environment = os.environ | ASCII | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == expected, done.stderr[-300:]
        assert beside(temporary) == []  # found: a folder of torch's compiler, which nobody had asked for

    changes = {
        "locale and time zone": elsewhere,
        "home and folder": homeless,
        "umask": careful,
        "threads": many_threads,
        "temporary files": partial(other_temporary, disk),
    }
    found: list[Case] = [(name, partial(here, name, change)) for name, change in changes.items()]
    return [*found, ("hash seed, threads and ASCII", alone)]


def test_the_environment_changes_no_byte(disk: Path, onnx_tiny: Path, real_exports: Count) -> None:
    cases = environment_cases(disk, hash_of(onnx_tiny), real_exports)
    assert len(cases) == 6
    outcomes = [outcome for case in cases for outcome in try_all([case], seconds=120)]  # each in a process of its own
    tally(SAME, outcomes)
    assert not failed(outcomes), in_lines(failed(outcomes))


def with_the_place(folder: Path) -> str:
    """What an export must not be: where and when it is made shows in it."""
    stand_in(folder / "build", os.getcwd() + str(time.tzname) + str(tempfile.tempdir))
    return hash_of(folder / "build")


def test_an_environment_that_shows_is_seen(disk: Path, real_exports: Count) -> None:
    (disk / "planted").mkdir()
    (disk / "before").mkdir()
    cases = environment_cases(disk / "planted", with_the_place(disk / "before"), real_exports, with_the_place)
    shown = {"locale and time zone", "home and folder", "temporary files"}
    outcomes = [outcome for case in cases if case[0] in shown for outcome in try_all([case])]
    assert len(failed(outcomes)) == 3, in_lines(outcomes)


@pytest.mark.long
def test_an_environment_that_shows_in_a_real_export_is_seen(
    disk: Path, onnx_tiny: Path, real_exports: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.onnx.build as module

    written = module.write_licences

    def here(folder: Path, *given: object) -> None:
        written(folder, *given)  # type: ignore[arg-type]
        (folder / "HERE").write_text(os.getcwd() + str(time.tzname))

    monkeypatch.setattr(module, "write_licences", here)
    (disk / "really planted").mkdir()
    cases = environment_cases(disk / "really planted", hash_of(onnx_tiny), real_exports)
    assert failed(try_all(cases[:1]))


def resident() -> int:
    """Bytes of this process's own in use, in memory or swapped: pages of files come and go as the system likes."""
    give_back_free_memory()
    lines = STATUS.read_text("ascii", "replace").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def repeated(disk: Path, name: str, times: int, work: Callable[[Path], object]) -> None:
    """One export after the other: no file is left anywhere, none stays open, and memory does not grow."""
    folder, temporary = disk / name, disk / f"{name} temporary"
    folder.mkdir()
    temporary.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    before: tuple[int, int] | None = None
    found = (0, 0)
    for turn in range(times):
        work(folder / "build")
        assert beside(folder) == ["build"]
        assert beside(temporary) == []
        if turn in (min(FIRST, times - 1), times - 1):
            found = (resident(), len(os.listdir("/proc/self/fd")))
            before = before or found
    assert before is not None
    assert found[0] - before[0] < GROWTH, f"{(found[0] - before[0]) / 2**20:.0f} MiB more"
    assert found[1] <= before[1], f"{found[1]} files are open, {before[1]} were"


def onnx(build: Path) -> None:
    from export import export

    export("tiny", build, format="onnx", overwrite=True)


def encoder(build: Path) -> None:
    from export import export

    export("tiny", build, only="encoder", image_sizes=[64], overwrite=True)


def repeat_cases(disk: Path) -> list[Case]:
    found: list[Case] = [("stand-in", partial(repeated, disk, "stand-in", 50, partial(stand_in, word="any")))]
    if LONG:
        found.append(("ONNX", partial(repeated, disk, "onnx", 50, onnx)))
        found.append(("Core ML encoder", partial(repeated, disk, "encoder", 50, encoder)))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what a process has")
def test_fifty_exports_leave_nothing(disk: Path) -> None:
    outcomes = try_all(repeat_cases(disk), seconds=300)
    tally(MANY, outcomes, exports=150, real_exports=100) if LONG else tally(MANY, outcomes, exports=50)
    assert not failed(outcomes), in_lines(failed(outcomes))


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what a process has")
def test_what_is_left_is_seen(disk: Path) -> None:
    kept: list[object] = []

    def grows(build: Path) -> None:
        stand_in(build, "any")
        kept.append(bytearray(os.urandom(4 << 20)))

    def opens(build: Path) -> None:
        stand_in(build, "any")
        kept.append(os.open(build, os.O_RDONLY))

    def litters(build: Path) -> None:
        stand_in(build, "any")
        tempfile.mkdtemp()

    cases: list[Case] = [(work.__name__, partial(repeated, disk, work.__name__, 20, work)) for work in (grows, opens)]
    cases.append(("litters", partial(repeated, disk, "litters", 2, litters)))
    assert len(failed(try_all(cases))) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what a process has")
def test_growth_into_memory_that_was_free_is_seen(disk: Path) -> None:
    bytearray(30 << 20)  # glibc cuts from its heap what is smaller than a freed block of at most 32 MiB
    freed = [bytearray(os.urandom(4 << 20)) for _ in range(40)]
    pin = bytearray(os.urandom(4 << 20))  # in use at the heap's end: nothing below it goes back by itself
    del freed
    kept: list[object] = []

    def grows(build: Path) -> None:
        stand_in(build, "any")
        kept.append(bytearray(os.urandom(4 << 20)))

    assert failed(try_all([("into the heap", partial(repeated, disk, "heap", 20, grows))]))
    assert pin


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what a process has")
def test_graphs_that_torch_keeps_are_seen(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.api.graphs_forgotten", nullcontext)
    assert failed(try_all([("kept", partial(repeated, disk, "kept", 9, encoder))], seconds=120))
