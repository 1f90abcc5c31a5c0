"""Eight exports to one place at once, with locks and without: one of them has the name, whole, and nothing else stays.

Each round begins with a place of another kind: nothing, not even the folder above; an older build; what dead runs left.
The short form has the stand-in alone, the long one also rounds of eight real exports, of two kinds.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ordeal import LONG, Case, in_lines, size, tally, try_all
from stand_in import beside, failed, killed, quick_disk, restored, stand_in, whole, without_exchange, without_locks

from fastvlm import steps
from fastvlm.errors import FastVLMError
from fastvlm.hashes import hash_tree

ROW = "8 exports to one place"
CROWD = 8
OTHER, RAW = 4, 5  # exit codes: a named error; any other
PLACES = ("nothing", "older", "left", "fails")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_disk(tmp_path_factory.mktemp("crowd")) as folder:
        yield folder


Work = Callable[[Path, int], None]  # what a member of the crowd does, of its number


def one(work: Callable[[], None], begin: float, said: Path) -> int:
    """One run of the crowd; returns its exit code, and says in a file why it is none."""
    time.sleep(max(0.0, begin - time.monotonic()))
    try:
        work()
    except BaseException as error:
        said.write_text(f"{type(error).__name__}: {error}")
        return OTHER if isinstance(error, FastVLMError) else RAW
    return 0


def together(top: Path, build: Path, locks: bool, exchange: bool, work: Work) -> None:
    """CROWD processes begin at once, and each ends well."""
    with restored():
        if not locks:
            without_locks()
        if not exchange:
            without_exchange()
        begin = time.monotonic() + 0.05
        children = []
        for member in range(CROWD):
            child = os.fork()
            if not child:
                os._exit(one(partial(work, build, member), begin, top / f"said {member}"))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * CROWD, [file.read_text() for file in top.glob("said *")]
    assert beside(build.parent) == ["build"]


def small(build: Path, member: int, number: int, fails: bool) -> None:
    """The stand-in; where it fails, that is how it ends well."""

    def stop() -> None:
        if fails and member % 2 == 0:
            raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        stand_in(build, f"{member} of {number}", stop=stop)


def crowd(disk: Path, number: int, kind: str, locks: bool, exchange: bool) -> None:
    """One round of the stand-in."""
    top = disk / f"{number} {kind} {locks} {exchange}"
    folder = top / "above" / "it"
    build = folder / "build"
    top.mkdir()
    if kind == "older":
        stand_in(build, "older")
    if kind == "left":
        folder.mkdir(parents=True)
        for moment in (20, 30):
            assert killed(partial(stand_in, build, "left"), moment)
    together(top, build, locks, exchange, partial(small, number=number, fails=kind == "fails"))
    assert whole(build) in {f"{member} of {number}" for member in range(CROWD)}


REAL: dict[str, list[dict[str, Any]]] = {  # options of the even members, and of the odd ones
    "ONNX": [{"format": "onnx"}, {"format": "onnx", "only": "encoder", "image_sizes": [64]}],
    "Core ML": [{"only": "encoder", "image_sizes": [64]}, {"only": "encoder", "image_sizes": [128]}],
}


def real(build: Path, member: int, kind: str) -> None:
    from export import export

    export("tiny", build, overwrite=True, **REAL[kind][member % 2])


def real_crowd(disk: Path, number: int, kind: str, locks: bool) -> None:
    """One round of real exports: what has the name is one of the two builds, to the last byte."""
    top = disk / f"real {number} {kind} {locks}"
    for member in range(2):
        real(top / f"alone {member}" / "build", member, kind)
    alone = [hash_tree(top / f"alone {member}" / "build") for member in range(2)]
    build = top / "together" / "build"
    if number:
        build.parent.mkdir()
        shutil.copytree(top / "alone 0" / "build", build)
    together(top, build, locks, True, partial(real, kind=kind))
    assert hash_tree(build) in alone


def real_cases(disk: Path, rounds: int = 2) -> list[Case]:
    """`rounds` of both kinds of real exports, with locks and without: where nothing is, and where a build is."""
    return [
        (f"real {kind} locks={locks:d} round {number}", partial(real_crowd, disk, number, kind, locks))
        for kind in REAL
        for locks in (True, False)
        for number in range(rounds)
    ]


def cases(disk: Path, rounds: int) -> list[Case]:
    """`rounds` with locks and without, and as many where two folders cannot trade names."""
    found: list[Case] = []
    for locks in (True, False):
        for exchange in (True, False):
            for number in range(rounds):
                kind = PLACES[number % len(PLACES)]
                name = f"{kind} locks={locks:d} exchange={exchange:d} round {number}"
                found.append((name, partial(crowd, disk, number, kind, locks, exchange)))
    random.Random(ROW).shuffle(found)
    return found


def test_a_crowd_leaves_one_whole_build(disk: Path) -> None:
    outcomes = try_all(cases(disk, size(5, 25)))
    exports = {"exports": len(outcomes) * CROWD}
    if LONG:
        found = [outcome for case in real_cases(disk) for outcome in try_all([case], seconds=240, memory=2 << 30)]
        exports["real_exports"] = len(found) * CROWD
        outcomes += found
    tally(ROW, outcomes, **exports)
    assert not failed(outcomes), in_lines(failed(outcomes))


def in_place(stage: Path, place: Path, _: object) -> None:
    """What publishing must not be, slow enough that two runs surely meet."""
    steps.remove(place)
    time.sleep(0.05)
    steps.rename(stage, place)


BROKEN = {
    "no swap": ("fastvlm.publish.swap", in_place),
    "the living are taken for dead": ("fastvlm.owners._is_left", lambda *_: True),
    "one name for all": ("fastvlm.publish.hidden", lambda place, kind: place.parent / f".{place.name}.{kind}"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_suite_sees_what_is_broken(disk: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(*BROKEN[broken])
    (disk / broken).mkdir()
    assert failed(try_all(cases(disk / broken, 3)))
