"""Puts this folder on the path, so that tests share `small_export`, and exports the small model once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model() -> Any:
    """The seeded reference; never changed."""
    from small_export import small_model

    return small_model()


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """The embedded checkpoint, held in memory; never changed."""
    from fastvlm_ref.checkpoint import load_checkpoint

    return load_checkpoint("tiny")


@pytest.fixture(scope="session")
def build(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model exported at two sizes; never written to."""
    from small_export import CONTEXT, QUERY, SIZES

    from export.api import export_model

    target = tmp_path_factory.mktemp("export") / "build"
    return export_model(model, target, image_sizes=SIZES, context=CONTEXT, query_length=QUERY)


@pytest.fixture(scope="session")
def encoder(build: Path) -> Any:
    """The encoder package's protobuf."""
    from small_export import read_proto

    return read_proto(build / "VisionEncoder.mlpackage")


@pytest.fixture(scope="session")
def language(build: Path) -> Any:
    """The language package's protobuf."""
    from small_export import read_proto

    return read_proto(build / "LanguageModel.mlpackage")
