"""A user's own files that hide a room: one error that names what was found, before anything of it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAP = "raise SystemExit('the file was imported')\n"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("validation.py", "validate"), ("validation/__init__.py", "MILModel"), ("export/__init__.py", "export"),
        ("fastvlm_ref.py", "load_checkpoint"), ("fastvlm_ref.py", "validate"),
    ],
)  # fmt: skip
def test_a_file_that_hides_a_room_is_named(root: Path, tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(TRAP)
    done = imported(root, tmp_path, name)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: fastvlm needs its own package {file.split('/')[0].removesuffix('.py')!r}")
    assert f"found {path}; run from another folder" in last


def test_files_of_other_names_do_not_matter(root: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()  # no package
    (tmp_path / "validation.py").write_text(TRAP)
    done = imported(root, tmp_path, "FastVLMConfig")
    assert (done.returncode, done.stderr) == (0, "")


def imported(root: Path, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Imports a lazy name in a fresh interpreter that looks into `folder` first, as `python -c` there does."""
    command = [sys.executable, "-c", f"from fastvlm import {name}"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
