"""The report of a build of ONNX files: what there is of it, in its own words, and a line for what there cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from markup import Element, parsed

from export import export
from fastvlm.build import ONNX, read_build
from validation import validate
from validation.html_report import read_report, with_profile
from validation.html_report.page import html_page
from validation.ort.engine import OrtEngine

STEPS = 4


@pytest.fixture(scope="session")
def onnx_reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of a validation of tiny as ONNX; the build lies beside it, in `build`."""
    folder = tmp_path_factory.mktemp("onnx-reported")
    build = export("tiny", folder / "build", format="onnx", image_sizes=(256, 128))
    assert validate(build, steps=STEPS, report=folder / "report.html").passed
    return folder / "report.html"


@pytest.fixture
def told(onnx_reported: Path) -> dict[str, Any]:
    """The document in it, which this test may change."""
    return read_report(onnx_reported)


def words(element: Element) -> str:
    return " ".join(element.text.split())


def section(page: Element, name: str) -> str:
    return words(next(each for each in page.all("section") if each.attributes["id"] == name))


def test_it_says_what_the_verdict_says(told: dict[str, Any], onnx_reported: Path) -> None:
    stored = json.loads((onnx_reported.parent / "build" / "validation.json").read_text("utf-8"))
    for key in ("verdict", "backend", "steps", "limits", "not_measured", "lacking", "findings"):
        assert told[key] == stored[key]
    assert told["backend"] == told["build"]["format"] == "onnx"
    assert [len(row["transcript"]["steps"]) for row in told["questions"]] == [STEPS] * 3
    assert [[size["size"] for size in row["encoder"]] for row in told["questions"]] == [[256, 128]] * 3
    assert told["build"]["query_length"] is None, "prefill takes any number of rows"


def test_sizes_are_those_of_the_files(told: dict[str, Any], onnx_reported: Path) -> None:
    """The second size's graph alone: the weights are the first one's. The state is what onnxruntime is handed."""
    build = onnx_reported.parent / "build"
    found = {row["package"]: row for row in told["sizes"]["packages"]}
    assert list(found) == ["VisionEncoder.onnx", "VisionEncoder-128.onnx", "LanguageModel.onnx"]
    data = {name: (build / f"{name}.data") for name in found}
    assert [row["weight_bytes"] for row in found.values()] == [
        path.stat().st_size if path.exists() else 0 for path in data.values()
    ]
    assert [row["bytes"] - row["weight_bytes"] for row in found.values()] == [
        (build / name).stat().st_size for name in found
    ]
    inputs = read_build(build, (ONNX,)).manifest["functions"]["language"][0]["main"]["inputs"]
    caches = [each["shape"] for each in inputs if each["name"].startswith("past")]
    assert told["sizes"]["state_bytes"] == 4 * sum(kinds * heads * c * d for kinds, heads, c, d in caches)


def test_where_the_nodes_ran(told: dict[str, Any], onnx_reported: Path) -> None:
    engine = OrtEngine(read_build(onnx_reported.parent / "build", (ONNX,)))
    for side in (256, 128):
        engine.encoder(side)
    engine.load()
    rows = {row["file"]: {row["provider"]: row["nodes"]} for row in told["placement"]}
    assert rows == engine.placement()
    assert f"LanguageModel. onnx cpu {rows['LanguageModel.onnx']['cpu']}" in section(
        parsed(html_page(told)), "placement"
    )


def test_what_there_cannot_be_is_a_line(told: dict[str, Any]) -> None:
    assert (told["blocks"], told["ranges"], told["devices"]["rows"]) == ([], None, [])
    page = parsed(html_page(told))
    assert section(page, "blocks").startswith("Where error grows Not compared: onnxruntime shows what a file gives")
    assert section(page, "ranges") == (
        "Range of the activations Not seen: onnxruntime does not show the values inside a file."
    )
    assert section(page, "devices").startswith("Devices Not estimated: the estimate is of Core ML packages")


def test_the_page_speaks_of_onnx(told: dict[str, Any]) -> None:
    page = parsed(html_page(told))
    main = words(next(page.all("main")))
    assert main.count("Core ML") == 1, "in the line on devices"
    for name in ("answers", "blocks", "ranges", "times", "placement", "sizes", "provenance"):
        assert "package" not in section(page, name), name
    assert "an iOS app" not in main
    assert "every op's result" not in main
    head = words(next(page.all("header")))
    assert "FastVLM as ONNX" in head
    assert "tiny, ONNX, fp32, 256 px, 128 px" in head
    assert "The ONNX files were executed by onnxruntime (backend onnx)" in head


def test_a_profile_puts_its_times_in(told: dict[str, Any]) -> None:
    stage = {"stage": "first_token", "position": None, "runs": {"median": 0.25, "count": 5}}
    row = {"name": "tiny, onnx", "build": {"manifest_sha256": told["build"]["manifest_sha256"]}, "stages": [stage]}
    times = section(parsed(html_page(with_profile(told, {"contenders": [row]}, "profile.json"))), "times")
    assert "tiny, onnx: 250 ms to the first token" in times
    assert "MIL runtime" not in times


def test_a_build_that_fails_is_reported_too(
    onnx_reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logit stands in another token's place."""
    plain = OrtEngine.decode
    monkeypatch.setattr(OrtEngine, "decode", lambda *a: plain(*a)[::-1].copy())
    build = shutil.copytree(onnx_reported.parent / "build", tmp_path / "build")
    assert not validate(build, steps=2, report=tmp_path / "report.html").passed
    page = parsed(html_page(read_report(tmp_path / "report.html")))
    assert "they do not compute what PyTorch computes" in words(next(page.all("header")))
    chips = [words(each) for each in page.all("li") if each.attributes.get("class") == "differs"]
    assert chips
    assert all("ONNX, a divergence" in chip for chip in chips)


def test_a_report_of_an_older_schema_is_of_packages(whole: dict[str, Any]) -> None:
    older = whole | {"schema": "0.1", "placement": None, "build": whole["build"] | {"format": None}}
    page = html_page(older)
    assert "FastVLM for Core ML" in page
    assert 'href="#placement"' not in page
