"""An object in a process of its own: its answers, its errors, and every way in which it can end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvlm.errors import BuildError, FastVLMError, ProcessError
from validation import children
from validation.children import Child, Limits

SERVES = "served:Clerk"


@pytest.fixture
def clerk() -> Iterator[Child]:
    child = Child(SERVES, "the clerk", start=5)
    yield child
    child.close()


def test_an_object_keeps_what_it_is_told(clerk: Child) -> None:
    assert clerk.call("add", number=2) == 7
    assert clerk.call("add", number=3) == 10
    assert clerk.stage == "adding"
    assert clerk.call("echo", a=[1, None, "é"], b={"c": 0.1}) == {"a": [1, None, "é"], "b": {"c": 0.1}}


def test_its_memory_holds_nothing_of_its_caller_s(clerk: Child) -> None:
    loaded = clerk.call("modules")
    assert "served" in loaded
    assert "pytest" not in loaded
    assert "torch" not in loaded


def test_the_current_folder_is_not_taken_for_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    child = Child(SERVES, "the clerk")
    assert child.call("add", number=1) == 1
    child.close()


def test_errors_cross_over_as_themselves(clerk: Child) -> None:
    with pytest.raises(BuildError, match="no such thing"):
        clerk.call("refuse")
    with pytest.raises(FastVLMError, match="a base is missing"):
        clerk.call("refuse_with_options")
    assert clerk.call("add", number=1) == 6, "it lives on"
    with pytest.raises(BuildError, match="a negative start"):
        Child(SERVES, "the clerk", start=-1)


@pytest.mark.parametrize(
    ("how", "ended", "says"),
    [
        ("SIGABRT", "SIGABRT", "2757"),
        ("SIGKILL", "SIGKILL", "memory ran out"),
        ("SIGSEGV", "SIGSEGV", "it said nothing"),
        ("exit", "exit code 3", "it said nothing"),
    ],
)
def test_a_child_that_ends_is_an_error_that_says_where(how: str, ended: str, says: str) -> None:
    child = Child(SERVES, "the clerk")
    with pytest.raises(ProcessError, match=says) as caught:
        child.call("end", how=how)
    assert (caught.value.stage, caught.value.ended) == ("ending", ended)
    assert f"the clerk ended by itself ({ended}) at stage ending" in str(caught.value)
    assert caught.value.exit_code == 1
    with pytest.raises(ProcessError):
        child.call("add", number=1)
    child.close()


def test_a_fault_in_a_child_is_told_by_its_last_line() -> None:
    child = Child(SERVES, "the clerk")
    with pytest.raises(ProcessError, match=r"at stage failing: ValueError: a fault"):
        child.call("fail")
    child.close()


def test_half_an_answer_is_none() -> None:
    child = Child(SERVES, "the clerk")
    with pytest.raises(ProcessError, match=r"\(SIGKILL\) at stage answering"):
        child.call("break_off")
    child.close()


def test_a_child_that_hangs_up_and_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PATIENCE", 0.1)
    child = Child(SERVES, "the clerk")
    with pytest.raises(ProcessError, match=r"\(SIGKILL\) at stage hanging up"):
        child.call("hang_up")
    child.close()


def test_a_child_at_work_is_ended_when_its_caller_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "PATIENCE", 90)  # longer than its work: nobody waits for that

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    child = Child(SERVES, "the clerk")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            child.call("sleep")
    finally:
        signal.signal(signal.SIGALRM, before)
    child.close()
    assert child._process.returncode == -signal.SIGKILL


def test_an_interrupt_from_the_keyboard_is_its_caller_s(clerk: Child) -> None:
    """A terminal sends it to every process of the session."""
    assert os.getsid(clerk._process.pid) != os.getsid(0)


def test_a_child_that_waits_ends_by_itself() -> None:
    child = Child(SERVES, "the clerk")
    child.close()
    assert child._process.returncode == 0


def test_a_child_that_does_not_answer_is_ended() -> None:
    child = Child(SERVES, "the clerk", Limits(seconds=0.5))
    with pytest.raises(ProcessError, match=r"no answer within 0\.5 s at stage waiting") as caught:
        child.call("wait", seconds=60)
    assert (caught.value.stage, caught.value.ended) == ("waiting", "timeout")
    child.close()


def test_one_that_answers_in_time_is_asked_again() -> None:
    child = Child(SERVES, "the clerk", Limits(seconds=30))
    for _ in range(3):
        assert child.call("wait", seconds=0.01) is None
    child.close()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS keeps to no such limit")
def test_a_child_has_no_more_memory_than_it_was_given() -> None:
    child = Child(SERVES, "the clerk", Limits(memory=64 << 20))
    assert child.call("take", count=16 << 20) == 16 << 20
    with pytest.raises(ProcessError, match="MemoryError"):
        child.call("take", count=256 << 20)
    child.close()
