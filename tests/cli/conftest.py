"""A small seeded checkpoint and a build of it, for what the commands do with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from synthetic import SMALL, TEXT, write_llava
from typed import Run, typed


@pytest.fixture
def run() -> Run:
    """Types a command: `run("export", checkpoint, "-o", build)`."""
    return typed


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA folder of seeded weights, image side 128; copy it before you damage it."""
    return write_llava(tmp_path_factory.mktemp("small") / "checkpoint", replace(SMALL, text=replace(TEXT, head_dim=32)))


@pytest.fixture(scope="session")
def small_build(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the small checkpoint; copy it before you damage it."""
    from export import export

    return export(small_checkpoint, tmp_path_factory.mktemp("small") / "build", context=512)


@pytest.fixture
def checkpoint(small_checkpoint: Path, tmp_path: Path) -> Path:
    """The small checkpoint, to be damaged."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def build(small_build: Path, tmp_path: Path) -> Path:
    """The small build, to be damaged or written into."""
    return Path(shutil.copytree(small_build, tmp_path / "build"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red picture, wider than high."""
    path = tmp_path / "pictures" / "red.png"
    path.parent.mkdir()
    Image.new("RGB", (90, 60), "red").save(path)
    return path
