"""Hidden names tell whose they are: the living keep theirs without any lock, a dead one's is claimed by one run."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvlm import owners
from fastvlm.owners import beside, claim, give_up, hidden, hold, is_left, release
from fastvlm.publish import _new_stage, replace_file, staged_folder


@pytest.fixture(params=["locks", "no locks"], autouse=True)
def _locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with locks and without."""
    if request.param == "no locks":

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)


def in_child(work: Callable[[], object]) -> int:
    """Runs it in a process that is dead afterwards; returns its number, which its parent has not asked for yet."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        work()
        os.write(writes, b".")
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writes)
    os.read(reads, 1)
    os.read(reads, 1)  # its end closes the pipe
    os.close(reads)
    return child


def test_what_a_dead_process_made_is_left_even_before_it_is_waited_for(tmp_path: Path) -> None:
    child = in_child(lambda: hidden(tmp_path / "build", "stage").mkdir())
    (stage,) = beside(tmp_path / "build", "stage")
    time.sleep(0.02)
    assert is_left(stage)
    os.waitpid(child, 0)
    assert is_left(stage)
    first = claim(stage, tmp_path / "build", "stage")
    assert first is not None
    assert claim(stage, tmp_path / "build", "stage") is None  # another was first
    assert not is_left(first[0])  # this process has it now
    release(first[0])
    os.close(first[1])


def test_a_living_process_keeps_what_it_holds(tmp_path: Path) -> None:
    mine = hold(hidden(tmp_path / "build", "stage"))
    mine.mkdir()
    assert not is_left(mine)
    child = os.fork()
    if not child:  # to another process the name alone tells
        owners._held.clear()
        os._exit(int(is_left(mine)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    left = give_up(mine, tmp_path / "build", "stage")
    assert is_left(left)


def test_a_process_that_has_a_dead_ones_number_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = hidden(tmp_path / "build", "stage")
    mine.mkdir()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert not is_left(mine)
    monkeypatch.setattr(owners, "_life", lambda _: "01234567")  # as after a boot
    assert is_left(mine)


@pytest.mark.parametrize("name", [f"{'a' * 8}{'0' * 24}", "0123456789abcdef"], ids=["another machine", "older version"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_names_that_cannot_be_judged_are_left_after_a_day(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, kind: str
) -> None:
    if name[0] == "a":
        name = name.replace("0", "1")  # a process, though of elsewhere
    stage = tmp_path / f".build.stage-{name}"
    stage.mkdir() if kind == "folder" else stage.touch()
    locks = "no locks" not in request.node.name
    assert is_left(stage) == (locks and kind == "folder")
    os.utime(stage, (0, time.time() - 25 * 3600))
    assert is_left(stage)


def test_a_long_name_has_hidden_ones_of_its_own(tmp_path: Path) -> None:
    one, other = (tmp_path / ("ü" * 120 + end) for end in "ab")
    hidden(one, "stage").mkdir()
    assert beside(other, "stage") == []
    assert len(beside(one, "stage")) == 1


def test_a_stage_that_vanishes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: eight runs at one place, and one removed what another had made and not yet locked."""
    opened, turns = os.open, []

    def opens(path: Path, *given: int) -> int:
        if ".stage-" in str(path) and len(turns) < 3:
            turns.append(path)
            os.rmdir(path)
        return opened(path, *given)

    monkeypatch.setattr(os, "open", opens)
    stage, handle = _new_stage(tmp_path / "a" / "build", [])
    assert stage.is_dir()
    assert len(turns) == 3
    os.close(handle)


def test_files_of_dead_runs_go_with_the_next_write(tmp_path: Path) -> None:
    child = in_child(lambda: hidden(tmp_path / "row.json", "stage").write_bytes(b"half"))
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 1
    replace_file(tmp_path / "row.json", b"whole")
    assert os.listdir(tmp_path) == ["row.json"]


def test_threads_of_one_process_leave_each_others_stages_alone(tmp_path: Path) -> None:
    met = threading.Barrier(4)
    ended: list[str] = []

    def run(word: str) -> None:
        with staged_folder(tmp_path / "build", True, lambda _: True) as stage:
            (stage / "word").write_text(word)
            met.wait(20)
        ended.append(word)

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["0", "1", "2", "3"]
    assert os.listdir(tmp_path) == ["build"]
