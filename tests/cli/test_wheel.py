"""The wheel, installed elsewhere: complete, and blind to `export.py` and `validation.py` in the current folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastvlm import __version__

ROOMS = ("fastvlm", "fastvlm_ref", "export", "validation", "ios_bundle")
TRAP = "raise SystemExit('the current folder was imported')\n"


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--no-deps", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for room in ROOMS:
        shutil.copytree(root / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, source)
    pip("wheel", str(source), "--no-build-isolation", "--wheel-dir", str(folder / "dist"))
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed") / "site"
    pip("install", str(wheel), "--target", str(folder))
    return folder


def command(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command in `folder`, which holds the traps."""
    for name in ("export.py", "validation.py", "fastvlm_ref.py", "click.py"):
        (folder / name).write_text(TRAP)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    words = (sys.executable, str(installed / "bin" / "fastvlm"), *words)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_wheel_holds_every_room_and_the_embedded_checkpoint(wheel: Path, root: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(root).as_posix()
        for room in ROOMS
        for path in (root / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(wanted - held) == []
    assert {name.split("/")[0] for name in held} == {*ROOMS, f"fastvlm_coreml-{__version__}.dist-info"}
    assert [name for name in ("LICENSE", "NOTICE") if not any(path.endswith(f"licenses/{name}") for path in held)] == []


def test_version(installed: Path, tmp_path: Path) -> None:
    result = command(installed, tmp_path, "--version")
    assert (result.stdout, result.stderr) == (f"fastvlm {__version__}\n", "")


def test_rooms_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = command(installed, tmp_path, "--debug", "export", "empty", "-o", "out")
    assert result.returncode == 2
    assert "the current folder was imported" not in result.stderr + result.stdout
    assert f'File "{installed / "export" / "api.py"}"' in result.stderr


def test_doctor_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    result = command(installed, tmp_path, "doctor", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(result.stdout)
    assert content["good"] is True
    wanted = {"python", "torch", "coremltools loads", "memory", "disk", "Core ML prediction", "HEIC pictures"}
    assert wanted <= {finding["name"] for finding in content["findings"]}
