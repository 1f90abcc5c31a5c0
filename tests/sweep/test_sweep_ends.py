"""How sweeps end and meet: interrupts, a killed parent, two in one folder, and what is cleared away afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from clerks import DEADLY, PATIENT, TOLD, result
from specs import Write
from typed import Run

from fastvlm.commands.sweep import cells
from fastvlm.errors import OutputError
from fastvlm_ref.checkpoint.opening import TINY
from validation.sweep import sweep, working
from validation.sweep.builds import tidy
from validation.sweep.cases import Case, planned
from validation.sweep.plot import write_plot
from validation.sweep.processes import Processes
from validation.sweep.rows import (
    BUILDS,
    ERROR,
    LOCK,
    RESULT,
    ROWS,
    SWEEP,
    held,
    measured,
    open_folder,
    read_row,
    write_error,
    write_row,
)  # fmt: skip
from validation.sweep.spec import read_spec
from validation.sweep.table import tabled

LINES = ("checkpoints: [tiny]", "schemes: [fp16, int8]", "images: [reds, blues]")
PATIENCE = 60  # seconds until a test gives up
PARENT = (
    "import sys; sys.path[:0] = sys.argv[1:]; from validation.children import Child; import os, threading, time; "
    "child = Child('clerks:Sleeper', 'a worker'); threading.Thread(target=child.call, args=('work',), daemon=True)"
    ".start(); time.sleep(0.5); print(child._process.pid, flush=True); os.kill(os.getpid(), 9)"
)
clerks = pytest.mark.usefixtures("clerks")


@clerks
def test_a_second_interrupt_leaves_no_worker_at_work(
    spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, makings = tmp_path / "out", planned(read_spec(spec(*LINES)))
    name = open_folder(out)
    for scheme in ("fp16", "int8"):
        (out / f"{scheme}{PATIENT}").touch()
    workers = Processes(2)
    ran = threading.Thread(target=lambda: list(workers.run(out, name, makings, False)), daemon=True)
    ran.start()
    _wait(lambda: (out / TOLD).is_file() and (out / TOLD).read_text().count("\n") == 2)
    again = [KeyboardInterrupt, SystemExit]
    shutdown = workers._pool.shutdown

    def interrupted(**given: Any) -> None:
        if again:
            raise again.pop()
        shutdown(**given)

    monkeypatch.setattr(workers._pool, "shutdown", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.__exit__()
    finally:
        for scheme in ("fp16", "int8"):
            (out / f"{scheme}{PATIENT}").unlink()
    ran.join(PATIENCE)
    assert not ran.is_alive()
    assert not any(map(_is_alive, _pids(out)))
    assert again == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_worker_at_work_ends_with_a_parent_that_is_killed(root: Path) -> None:
    folders = [str(root), str(Path(__file__).parent)]
    parent = subprocess.run([sys.executable, "-P", "-c", PARENT, *folders], capture_output=True, text=True, check=False)
    assert parent.returncode == -9, parent.stderr
    pid = int(parent.stdout)
    _wait(lambda: not _is_alive(pid))


def _wait(until: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _pids(out: Path) -> list[int]:
    return [int(line.split()[1]) for line in (out / TOLD).read_text().splitlines()]


def _is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@clerks
def test_a_sweep_whose_workers_cannot_be_started_says_so_in_its_rows(
    spec: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("validation.sweep.processes.Child", refuse)
    swept = sweep(spec(*LINES), tmp_path / "out")
    assert {row["status"] for row in swept.rows} == {ERROR}
    assert all(row["error"].startswith("no worker can be started (Resource temporarily") for row in swept.rows)


@clerks
def test_pictures_that_end_every_worker_cost_no_others_their_row(spec: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_folder(out)
    (out / f"reds{DEADLY}").touch()
    swept = sweep(spec("checkpoints: [tiny]", "images: [reds, blues]"), out)
    assert [(row["images"], row["status"]) for row in swept.rows] == [("reds", ERROR), ("blues", "passed")]


def test_an_unforeseen_error_is_that_case_s_alone(
    spec: Write, exported_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (making,) = planned(read_spec(spec("checkpoints: [tiny]", "images: [reds, blues]")))
    out = tmp_path / "out"
    name = open_folder(out)
    shutil.copytree(exported_tiny, out / BUILDS / making.folder)

    def compared(_: object, case: Case, *more: object) -> dict[str, Any]:
        if case.images == "reds":
            raise IndexError("nobody \udcff thought of it")
        return {name: ROW[name] for name in RESULT if name not in ("bytes", "estimates")} | {"status": "passed"}

    monkeypatch.setattr(working, "_compared", compared)
    working.work(str(out), name, making.as_json(), False)
    reds, blues = (read_row(out, case.id) for case in making.cases)
    assert reds is not None
    assert reds["error"] == "internal error (IndexError: nobody \\udcff thought of it); a fault of fastvlm: report it"
    assert blues is not None
    assert blues["status"] == "passed"


@clerks
def test_two_sweeps_do_not_work_in_one_folder(spec: Write, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out):
        result = run("sweep", spec(*LINES), "-o", out)
        assert result.exit_code == 2
        assert f"another sweep works in {out}" in result.stderr
        assert not list((out / ROWS).iterdir())
    assert run("sweep", spec(*LINES), "-o", out).exit_code == 0


def test_a_folder_without_locks_is_worked_in_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with held(tmp_path / "out") as name:
        assert name


@pytest.mark.parametrize("left", [(ROWS,), (ROWS, BUILDS, LOCK), (f".{SWEEP}.stage-0123456789abcdef",)])
def test_a_folder_that_was_never_finished_is_gone_on_with(left: tuple[str, ...], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).touch() if name.startswith(".") or name == LOCK else (tmp_path / name).mkdir()
    assert open_folder(tmp_path)


def test_a_folder_of_a_newer_kind_is_refused_before_planning(spec: Write, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_folder(out)
    (out / SWEEP).write_text('{"schema": "1.0", "name": "x"}')
    result = run("sweep", spec("checkpoints: [nowhere]"), "-o", out)
    assert result.exit_code == 2
    assert "has schema '1.0', this fastvlm reads 0.1" in result.stderr


def test_a_place_that_cannot_be_is_told_before_checkpoints_are_fetched(
    spec: Write, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.sweep.cases.on_disk", lambda *_: pytest.fail("a checkpoint was fetched"))
    for place in (tmp_path / "sweep.yaml", tmp_path / "sweep.yaml" / "out", tmp_path / "reds", tmp_path / ("x" * 300)):
        found = run("sweep", spec("checkpoints: [owner/name]"), "-o", place)
        assert (found.exit_code, found.stderr.count("\n")) == (2, 1), found.stderr
        assert "choose another place with -o" in found.stderr


ROW = result(
    {"folder": "b", "checkpoint": "tiny", "image_size": 256, "scheme": "fp16", "target": "ane", "context": 2048},
    {"id": "aa", "images": "reds"},
)


def test_an_error_does_not_take_the_place_of_a_result(tmp_path: Path) -> None:
    open_folder(tmp_path)
    error = {**ROW, "status": ERROR, "error": "lost a race"}
    write_error(tmp_path, error)
    assert read_row(tmp_path, "aa") == error
    write_row(tmp_path, ROW)
    write_error(tmp_path, error)
    assert read_row(tmp_path, "aa") == ROW


@pytest.mark.parametrize(
    "more",
    [{"status": "splendid"}, {"status": None}, {"images": 5}, {"bytes": "1"}, {"bytes": True}, {"estimates": [{}]},
     {"estimates": None}, {"missed": "x"}, {"schema": "0.0"}, {"schema": "9.0"}, {"kl": "0"}],
)  # fmt: skip
def test_a_row_of_another_kind_is_no_result(more: dict[str, Any], tmp_path: Path) -> None:
    open_folder(tmp_path)
    write_row(tmp_path, {**ROW, **more})
    assert measured(tmp_path, ["aa"]) == {}
    without = {name: value for name, value in {**ROW, **more}.items() if name not in more}
    write_row(tmp_path, without)
    assert measured(tmp_path, ["aa"]) == {}


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    open_folder(tmp_path)
    monkeypatch.setattr("fastvlm.steps.sync", refuse)
    with pytest.raises(OutputError, match="Input/output error"):
        write_row(tmp_path, ROW)


@clerks
def test_only_what_this_run_made_is_cleared_away(spec: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(spec(*LINES, "keep_builds: true"), out)
    kept = [making.folder for making in planned(read_spec(spec(*LINES)))]
    hidden = [f".{kept[0]}.gone-01234567", f".{kept[0]}.stage-0123456789abcdef"]
    for name in (*kept, *hidden, "mine", ".mine"):
        (out / BUILDS / name).mkdir()
    (out / ROWS / ".aa.json.stage-0123456789abcdef").touch()
    more = ("checkpoints: [tiny]", "schemes: [fp16, int8, lut4]", "images: [reds, blues]")
    (new,) = (making.folder for making in planned(read_spec(spec(*more))) if making.scheme == "lut4")
    (out / BUILDS / new).mkdir()
    sweep(spec(*more), out)
    assert sorted(entry.name for entry in (out / BUILDS).iterdir()) == sorted([*kept, "mine", ".mine"])
    assert len(list((out / ROWS).iterdir())) == 6
    (out / BUILDS / "mine").rmdir()
    tidy(tmp_path / "nowhere", ["a"])


@clerks
def test_a_row_speaks_in_the_words_of_the_spec_that_asks(spec: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(spec("checkpoints: [tiny]", "images: [reds]"), out)
    again = sweep(spec("checkpoints: [tiny]", "images: [./reds, blues]"), out)
    assert again.taken == 1
    assert [row["images"] for row in again.rows] == ["./reds", "blues"]


@clerks
def test_what_is_to_be_typed_next_names_the_same_options(spec: Write, run: Run, tmp_path: Path) -> None:
    lines = ("checkpoints: [tiny]", "schemes: [lut6]", "images: [reds]")
    found = run("sweep", spec(*lines), "-o", tmp_path / "out", "--workers", "2")
    assert f"-o {tmp_path / 'out'} --workers 2, which tries these again" in found.stdout + found.stderr


def test_a_device_that_a_row_has_no_estimate_for(tmp_path: Path) -> None:
    (row,) = tabled([ROW], "iPhone 16")
    assert (row["first_token"], row["front"], row["bytes"]) == (None, False, 1000)
    assert write_plot(tmp_path, [row], "iPhone 16") is None
    assert cells(row)[-1] == "passed"


def test_a_place_in_a_checkpoint_is_refused_and_one_beside_pictures_taken(
    spec: Write, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.sweep.processes.SERVED", "clerks:Clerk")
    shutil.copytree(TINY, tmp_path / "model")
    lines = ("checkpoints: [model]", "images: [reds]")
    found = run("sweep", spec(*lines), "-o", tmp_path / "model" / "out")
    assert (found.exit_code, "lie in each other" in found.stderr) == (2, True)
    assert not (tmp_path / "model" / "out").exists()
    assert run("sweep", spec(*lines), "-o", tmp_path / "reds" / "out").exit_code == 0
    assert run("sweep", spec(*lines), "-o", tmp_path / "reds" / "out").exit_code == 0  # its own files are no pictures
