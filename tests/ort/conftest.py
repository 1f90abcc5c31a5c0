"""A build of ONNX files of the embedded checkpoint, made once, and its engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from onnx_builds import write_build

from fastvlm.build import ONNX, read_build
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.fastvlm import FastVLM
from validation.ort.engine import OrtEngine
from validation.ort.settings import Settings


@pytest.fixture(scope="session")
def tiny_model() -> FastVLM:
    """The embedded checkpoint."""
    return load_checkpoint("tiny")


@pytest.fixture(scope="session")
def written_onnx(tiny_model: FastVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its build of ONNX files; never written to (use `onnx_build`)."""
    return write_build(tiny_model, tmp_path_factory.mktemp("onnx") / "build")


@pytest.fixture
def onnx_build(written_onnx: Path, tmp_path: Path) -> Path:
    """The build, which this test may damage."""
    return Path(shutil.copytree(written_onnx, tmp_path / "build"))


@pytest.fixture
def engine(written_onnx: Path) -> OrtEngine:
    """Its engine, on one thread that does not turn while it waits: the machine is not the test's alone."""
    return OrtEngine(read_build(written_onnx, (ONNX,)), settings=Settings(threads=1, spin=False))
