"""A sweep on a local Ray of two workers, one of which is killed on the way: nothing lost, nothing counted twice.

By clerks, which cost little, and, in `make long`, by the work itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clerks import DEADLY, TOLD
from specs import Write

from validation.sweep.rows import BUILDS, ROWS, open_folder

pytest.importorskip("ray")
# Held open by the test, which types its end. Ray's folder is short: the name of a socket has at most 107 characters.
HEAD = (
    "import ray, sys; found = ray.init(num_cpus=2, include_dashboard=False, _node_ip_address='127.0.0.1', "
    "object_store_memory=80 << 20, _temp_dir=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
    "print(found.address_info['address'], flush=True); sys.stdin.read()"
)
TYPED = "from fastvlm.cli import main; main()"
# In Ray's workers alone a clerk does the work; Python runs this before anything else.
CLERKS = """
import sys, types

if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    working = types.ModuleType("validation.sweep.working")

    def work(*given):
        from clerks import Clerk

        Clerk(print).work(*given)

    working.work = work
    sys.modules[working.__name__] = working
"""
PATIENCE = 300  # seconds until the test gives up
ENDED = "A worker died or was killed"  # what Ray prints of it


@pytest.fixture
def clerks(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray starts finds clerks for the work."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "sitecustomize.py").write_text(CLERKS)
    places = (tmp_path / "sites", Path(__file__).parent, root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))


@pytest.fixture
def python_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray starts finds the rooms."""
    monkeypatch.setenv("PYTHONPATH", str(root))


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, str]]:
    """A local Ray of two workers, with the path that is set: its process, and its address."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the user's home
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tempfile.mkdtemp(prefix="ray-")
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
        process.communicate("")
    shutil.rmtree(folder, ignore_errors=True)


def _workers(head: int) -> list[int]:
    """The processes below `head` that are at a task of a sweep."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
    return [pid for pid in parents if _is_below(pid, head, parents) and "ray::_task" in _title(pid)]


def _is_below(pid: int, head: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != head:
        pid = parents[pid]
    return pid == head


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def typed(file: Path, out: Path, address: str) -> list[str]:
    """The command of a sweep on Ray."""
    return [sys.executable, "-c", TYPED, "sweep", str(file), "-o", str(out), "--json", "--ray", address]


def test_a_task_whose_worker_dies_is_started_anew(
    clerks: None, head: tuple[int, str], spec: Write, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    file = spec("checkpoints: [tiny]", "schemes: [fp16, int8]", "images: [reds, blues]")
    open_folder(out)
    (out / f"fp16{DEADLY}").write_text("1")  # between its two rows
    sweep = subprocess.run(typed(file, out, head[1]), cwd=root, capture_output=True, text=True, timeout=PATIENCE)
    assert sweep.returncode == 0, sweep.stderr
    assert ENDED in sweep.stderr + sweep.stdout
    rows = json.loads(sweep.stdout[sweep.stdout.index("{\n") :])["rows"]
    assert [(row["scheme"], row["images"], row["status"]) for row in rows] == [
        (scheme, images, "passed") for scheme in ("fp16", "int8") for images in ("reds", "blues")
    ]
    assert sorted(entry.name for entry in (out / ROWS).iterdir()) == sorted(f"{row['case']}.json" for row in rows)
    attempts = [line.split() for line in (out / TOLD).read_text().splitlines()]
    assert sorted(scheme for scheme, _ in attempts) == ["fp16", "fp16", "int8"]
    assert len({process for scheme, process in attempts if scheme == "fp16"}) == 2


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_worker_is_killed_and_every_case_has_one_row(
    python_path: None, head: tuple[int, str], spec: Write, root: Path, tmp_path: Path
) -> None:
    process, address = head
    out = tmp_path / "out"
    file = spec("checkpoints: [tiny]", "schemes: [fp16, int8]", "images: [reds, blues]", "steps: 1")
    with subprocess.Popen(
        typed(file, out, address), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as sweep:
        deadline = time.monotonic() + PATIENCE
        while not list(out.glob(f"{ROWS}/*.json")) and sweep.poll() is None:  # one row is written, others are not
            assert time.monotonic() < deadline
            time.sleep(0.05)
        busy = _workers(process)
        assert busy, "every task was done before one could be killed"
        os.kill(busy[-1], signal.SIGKILL)
        written, said = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 0, said
    assert ENDED in said + written
    rows = json.loads(written[written.index("{\n") :])["rows"]
    assert [(row["scheme"], row["images"], row["status"]) for row in rows] == [
        (scheme, images, "passed") for scheme in ("fp16", "int8") for images in ("reds", "blues")
    ]
    sizes = {row["scheme"]: row["bytes"] for row in rows}
    assert sizes["int8"] < 0.9 * sizes["fp16"]
    assert sorted(entry.name for entry in (out / ROWS).iterdir()) == sorted(f"{row['case']}.json" for row in rows)
    assert len({row["case"] for row in rows}) == 4
    assert list((out / BUILDS).iterdir()) == []
