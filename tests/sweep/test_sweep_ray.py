"""A sweep on a local Ray of two workers, one of which is killed on the way: nothing lost, nothing counted twice."""

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
from specs import Write

from validation.sweep.rows import BUILDS, ROWS

pytest.importorskip("ray")
# Held open by the test, which types its end. Ray's folder is short: the name of a socket has at most 107 characters.
HEAD = (
    "import ray, sys; found = ray.init(num_cpus=2, include_dashboard=False, _node_ip_address='127.0.0.1', "
    "object_store_memory=80 << 20, _temp_dir=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
    "print(found.address_info['address'], flush=True); sys.stdin.read()"
)
TYPED = "from fastvlm.cli import main; main()"
PATIENCE = 300  # seconds until the test gives up
ENDED = "A worker died or was killed"  # what Ray prints of it


@pytest.fixture
def head(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, str]]:
    """A local Ray of two workers: its process, and its address."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written into the user's home
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(root))
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


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_worker_is_killed_and_every_case_has_one_row(
    head: tuple[int, str], spec: Write, root: Path, tmp_path: Path
) -> None:
    process, address = head
    out = tmp_path / "out"
    file = spec("checkpoints: [tiny]", "schemes: [fp16, int8]", "images: [reds, blues]", "steps: 1")
    words = [sys.executable, "-c", TYPED, "sweep", str(file), "-o", str(out), "--json", "--ray", address]
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sweep:
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
