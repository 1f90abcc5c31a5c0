"""Progress: silent in libraries, bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import io

import pytest

from fastvlm.progress import SILENT
from fastvlm.terminal import TerminalProgress


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def work(progress: TerminalProgress) -> None:
    with progress.stage("reading [weights]", 2) as advance:
        advance(1)
        progress.note("assumed [qwen_2]")
        with progress.stage("inner") as inner:
            inner(1)
        advance(1)


def test_silent_listens_to_everything() -> None:
    with SILENT.stage("x", 3) as advance:
        advance(3)
    SILENT.note("y")


def test_a_pipe_gets_notes_alone() -> None:
    stream = io.StringIO()
    work(TerminalProgress(stream))
    assert stream.getvalue() == "note: assumed [qwen_2]\n"


def test_a_terminal_gets_a_bar_for_each_stage() -> None:
    stream = Terminal()
    work(TerminalProgress(stream))
    for text in ("reading [weights]", "inner", "note: assumed [qwen_2]"):
        assert text in stream.getvalue()


def test_transient_bars_leave_the_screen_empty() -> None:
    kept, gone = Terminal(), Terminal()
    for stream, transient in ((kept, False), (gone, True)):
        with TerminalProgress(stream, transient).stage("reading"):
            pass
    erase_line = "\x1b[2K"
    assert gone.getvalue().endswith(erase_line)
    assert not kept.getvalue().endswith(erase_line)


def test_an_error_ends_the_bars_and_a_new_stage_can_start() -> None:
    progress = TerminalProgress(Terminal())
    with pytest.raises(KeyError), progress.stage("outer"), progress.stage("inner"):
        raise KeyError
    with progress.stage("again", 1) as advance:
        advance(1)
