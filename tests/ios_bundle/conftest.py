"""Bundles to damage: the one of the embedded checkpoint, and one with its layout in a few kilobytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shrunk import shrink


@pytest.fixture
def whole(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the embedded checkpoint that this test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "whole"))


@pytest.fixture
def validated(validated_tiny: Path, tmp_path: Path) -> Path:
    """A validated build that this test may damage."""
    return Path(shutil.copytree(validated_tiny, tmp_path / "build"))


@pytest.fixture(scope="session")
def small_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle with every file of a real one, each cut to at most 3,000 bytes: quick to hash 2,000 times."""
    return shrink(tiny_bundle, tmp_path_factory.mktemp("small") / "bundle")
