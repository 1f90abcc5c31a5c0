"""One report of the embedded checkpoint for all tests here, its data, and its page."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, browser, found


@pytest.fixture(scope="session")
def reported(exported_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of a validation of tiny, sixteen steps; the build lies beside it, in `build`."""
    from validation import validate

    folder = tmp_path_factory.mktemp("reported")
    build = shutil.copytree(exported_tiny, folder / "build")
    assert validate(build, steps=16, report=folder / "report.html").passed
    return folder / "report.html"


@pytest.fixture(scope="session")
def whole(reported: Path) -> dict[str, Any]:
    """The document in it; never changed (use `document`)."""
    from validation.html_report import read_report

    return read_report(reported)


@pytest.fixture
def document(whole: dict[str, Any]) -> dict[str, Any]:
    """The document, which this test may change."""
    return copy.deepcopy(whole)


@pytest.fixture
def failed(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a build that failed: a missed limit, a block beyond its own, a tie, a divergence, infinities."""
    document |= {"verdict": "failed", "holds": False, "lacking": ["answer.rank"]}
    document["limits"][9] |= {"passed": False, "value": "nan"}
    document["blocks"][0]["blocks"][3] |= {"snr_db": "-inf", "loss_db": "inf"}
    document["ranges"]["runs"][0]["blocks"][3]["peak"] = "inf"
    document["ranges"]["largest"][0]["peak"] = "inf"
    chances = {"pytorch": 0.4, "coreml": 0.3}
    for place, tie in ((1, True), (2, False)):
        step = document["questions"][0]["transcript"]["steps"][place]
        step["coreml"] = {"id": 9, "text": " \n", "probability": chances}
        step |= {"tie": tie, "pytorch": {**step["pytorch"], "probability": chances}}
        document["differing_steps"].append({"of": "answer", "sample": "shapes.png: ?", "step": place + 1, **step})
    document["placement"] = [{"file": "VisionEncoder.onnx", "provider": "cpu", "nodes": 200}]
    document["findings"] = [
        {
            "function": "decode", "block": "decoder.layers.2", "op": None, "found": 1.5, "expected": -1.5,
            "snr_db": 12.3, "yardstick_db": 65.4, "float32_db": "-inf", "cause": "conversion", "piece": "a norm",
        }
    ]  # fmt: skip
    return document


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser; tests that need it are skipped where none is installed."""
    if found() is None:
        pytest.skip("no Chromium on this machine: the page is not rendered")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
