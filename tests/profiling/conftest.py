"""A Mac that is none, and processes that live in this one where a test is not about processes."""

from __future__ import annotations

import sys
from pathlib import Path

import coreml_standin
import pytest
from local import Local

from validation.children import Child

sys.path.insert(0, str(Path(__file__).parent))  # for child processes: they take this one's path


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that wait for each other on a busy machine take a hundred times as long."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """coremltools' stand-in, here and in child processes; COREML_STANDIN plants a fault."""
    monkeypatch.delenv("COREML_STANDIN", raising=False)
    coreml_standin.opened.clear()
    coreml_standin.planned.clear()
    coreml_standin.install(monkeypatch.setattr)
    monkeypatch.setattr("validation.coreml.predictor.Child", Local)
    return monkeypatch


@pytest.fixture
def apart(mac: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same, with functions in processes of their own, as on a Mac."""
    mac.setattr("validation.coreml.predictor.Child", Child)
    return mac


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives in child processes lives in this one, and looks at a small photo."""
    monkeypatch.setattr("validation.profiling.workload.PHOTO", (320, 240))
    monkeypatch.setattr("validation.profiling.rounds.Child", Local)
    monkeypatch.setattr("validation.coreml.plan.Child", Local)
