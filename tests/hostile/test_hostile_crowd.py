"""Eight exports to one place at once, with locks and without: one of them has the name, whole, and nothing else stays.

Each round begins with a place of another kind: nothing, not even the folder above; an older build; what dead runs left.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from ordeal import Case, in_lines, size, tally, try_all
from stand_in import beside, failed, killed, quick_disk, restored, stand_in, whole, without_exchange, without_locks

from fastvlm import steps
from fastvlm.errors import FastVLMError

ROW = "8 exports to one place"
CROWD = 8
OTHER, RAW = 4, 5  # exit codes: a named error; any other
PLACES = ("nothing", "older", "left", "fails")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_disk(tmp_path_factory.mktemp("crowd")) as folder:
        yield folder


def one(build: Path, word: str, begin: float, fails: bool, said: Path) -> int:
    """One run of the crowd; returns its exit code, and says in a file why it is none."""

    def stop() -> None:
        if fails:
            raise ZeroDivisionError

    time.sleep(max(0.0, begin - time.monotonic()))
    try:
        stand_in(build, word, stop=stop)
    except ZeroDivisionError:
        return 0
    except BaseException as error:
        said.write_text(f"{type(error).__name__}: {error}")
        return OTHER if isinstance(error, FastVLMError) else RAW
    return 0


def crowd(disk: Path, number: int, kind: str, locks: bool, exchange: bool) -> None:
    """One round: all begin at once, and each ends well."""
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
                fails = kind == "fails" and member % 2 == 0
                os._exit(one(build, f"{member} of {number}", begin, fails, top / f"said {member}"))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * CROWD, [file.read_text() for file in top.glob("said *")]
        assert whole(build) in {f"{member} of {number}" for member in range(CROWD)}
        assert beside(folder) == ["build"]


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
    rounds = size(5, 25)
    outcomes = try_all(cases(disk, rounds))
    tally(ROW, outcomes, exports=len(outcomes) * CROWD)
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
