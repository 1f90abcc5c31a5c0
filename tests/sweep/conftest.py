"""Specs and pictures for the tests of `fastvlm sweep`; workers whose work costs nothing, for tests about workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "cli"):  # for child processes too: they take this one's path
    sys.path.insert(0, str(folder))

from specs import Write  # noqa: E402
from typed import Run, typed  # noqa: E402


@pytest.fixture
def run() -> Run:
    """Types a command: `run("sweep", spec, "-o", folder)`."""
    return typed


@pytest.fixture
def spec(tmp_path: Path) -> Write:
    """Writes a spec: `spec("checkpoints: [tiny]")`; two folders of one picture each lie beside it."""
    for name, colour in (("reds", "red"), ("blues", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), colour).save(tmp_path / name / f"{colour}.png")

    def write(*lines: str) -> Path:
        file = tmp_path / "sweep.yaml"
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


@pytest.fixture
def clerks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that write rows without a build (`clerks.Clerk`)."""
    monkeypatch.setattr("validation.sweep.processes.SERVED", "clerks:Clerk")
