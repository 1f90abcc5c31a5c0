"""Builds and targets for the tests of `fastvlm fit`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "cli"):
    sys.path.insert(0, str(folder))

from typed import Run, typed  # noqa: E402

from validation.fit.sizes import Sizes, sizes_of  # noqa: E402


@pytest.fixture
def run() -> Run:
    """Types a command: `run("fit", "0.5b")`."""
    return typed


@pytest.fixture(scope="session")
def gpu_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint for a GPU, in int8: the other layout, and compressed weights."""
    from export import export

    return export("tiny", tmp_path_factory.mktemp("fit") / "gpu", target="gpu", quantize="int8")


@pytest.fixture(scope="session")
def chained_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint, its language model in several packages, the last of the head alone."""
    from export import export

    return export("tiny", tmp_path_factory.mktemp("fit") / "chained", max_file_size=850_000)


@pytest.fixture(scope="session")
def half() -> Sizes:
    """0.5b."""
    return sizes_of("0.5b")


@pytest.fixture(params=["exported_tiny", "gpu_tiny"])
def build(request: pytest.FixtureRequest) -> Path:
    """Each of the builds; never written to."""
    found: Path = request.getfixturevalue(request.param)
    return found
