"""Every way a command can end: one line, and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fastvlm import cli as module
from fastvlm.cli import cli
from fastvlm.errors import FastVLMError, PromptError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `doctor` that raises what the test puts into the list."""
    raised: list[BaseException] = []

    @click.command()
    @module.debug
    def doctor() -> None:
        raise raised[0]

    monkeypatch.setattr(module.Commands, "get_command", lambda *_: doctor)
    return raised


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="fastvlm")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FastVLMError("found this, expected that; do so"), 2, "Error: found this, expected that; do so\n"),
        (PromptError("two\n  lines\n"), 2, "Error: two; lines\n"),
        (FastVLMError("red \x1b[31m and \x07"), 2, "Error: red \\x1b[31m and \\x07\n"),
        (PermissionError(13, "Permission denied", "a.bin"), 2, "Error: a.bin: Permission denied; check the path"),
        (MemoryError(), 2, "Error: not enough memory"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (KeyError("layers"), 70, "Error: internal error (KeyError: 'layers'); this is a fault of fastvlm"),
        (click.UsageError("No such thing."), 2, "Error: No such thing; `fastvlm doctor --help` explains the usage\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_one_line_and_the_code(failing: list[BaseException], error: BaseException, code: int, line: str) -> None:
    failing.append(error)
    result = run("doctor")
    assert result.exit_code == code
    assert result.stderr.lstrip("\n").startswith(line)
    assert len(result.stderr.strip().splitlines()) == (1 if line else 0)
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [("--debug", "doctor"), ("doctor", "--debug")])
def test_debug_shows_the_traceback_and_keeps_the_code(failing: list[BaseException], arguments: tuple[str, ...]) -> None:
    failing.append(FastVLMError("what"))
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("Error: what\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"], ["--nosuch"], ["export"], ["export", "tiny"], ["export", "tiny", "-o", "x", "--context", "many"],
        ["export", "tiny", "-o", "x", "--only", "both"], ["run", "tiny"], ["run", "tiny", "a.png", "b", "c"],
        ["inspect", "--json=3", "x"], ["run", "tiny", "a.png", "b", "--max-new-tokens", "0"],
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_no_command_shows_help() -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (2, "")
    assert result.stdout == run("--help").stdout
    assert "\nCommands:\n" in result.stdout


def test_an_interrupt_while_click_loads_is_quiet(root: Path, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    command = [sys.executable, "-c", "from fastvlm.cli import main; main()", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


HOLDER = """
import sys, time
from fastvlm import cli
from fastvlm.publish import staged_folder
def hold(*_):
    with staged_folder(sys.argv[1], False) as stage:
        print("ready", flush=True)
        time.sleep(60)
cli.cli.main = lambda **_: hold()
cli.main()
"""


def test_termination_cleans_up(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "build")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        holder.send_signal(signal.SIGTERM)
    assert holder.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_what_is_kept(failing: list[BaseException]) -> None:
    interrupt = KeyboardInterrupt()
    interrupt.add_note("the finished parts are kept in a place")
    failing.append(interrupt)
    result = run("doctor")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted; the finished parts are kept in a place."


KEEPER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
import click
from fastvlm import cli
from fastvlm.parts import Parts
from fastvlm.publish import staged_folder
@click.command()
@click.argument("place")
def hold(place):
    with staged_folder(place, False, resume=True) as stage:
        Parts(stage).make("part", {}, lambda path: (path.write_text("finished"), {})[1])
        print("ready", flush=True)
        time.sleep(60)
cli.Commands.get_command = lambda *_: hold
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGTERM, 143, "Terminated"), (signal.SIGINT, 130, "Interrupted")]
)
def test_a_signal_keeps_what_is_finished_and_says_where(
    root: Path, tmp_path: Path, number: signal.Signals, code: int, how: str
) -> None:
    command = [sys.executable, "-c", KEEPER, "doctor", str(tmp_path / "build")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=root, text=True, **pipes) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        assert holder.stdout.readline() == "ready\n"
        holder.send_signal(number)
        said = holder.stderr.read().strip()
    assert holder.returncode == code
    (stage,) = tmp_path.iterdir()
    assert said == f"{how}; the finished parts are kept in {stage}, and the same command goes on with them."
    assert (stage / "part").read_text() == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_that_cannot_be_written_is_a_named_error(root: Path) -> None:
    command = [sys.executable, "-c", "from fastvlm.cli import main; main()", "export", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: the output cannot be written (No space left on device); free some space, or send it elsewhere\n"
    )


def test_closed_pipe_is_quiet(root: Path) -> None:
    code = "from fastvlm.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "--help"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.close()
        assert writer.stderr.read() == ""
    assert writer.returncode == 141
