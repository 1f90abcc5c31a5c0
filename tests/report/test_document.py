"""The document says what the validation found, of every kind of build; and the same validation, the same document."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from markup import parsed
from PIL import Image

from fastvlm_ref.samples import shipped_samples
from validation import validate
from validation.html_report import pictures, read_report
from validation.html_report.page import html_page


def report(build: Path, **asked: Any) -> dict[str, Any]:
    """The document of a validation of a copy of the build."""
    place = build.parent / "report.json"
    validate(build, report=place, **asked)
    return read_report(place)


def test_the_same_validation_gives_the_same_document(whole: dict[str, Any], tiny_build: Path) -> None:
    again = report(tiny_build, steps=16)
    assert {**again, "times": None} == {**whole, "times": None}
    assert str(tiny_build.parent) not in json.dumps(again), "it holds no path"


def test_it_says_what_the_verdict_says(whole: dict[str, Any], reported: Path) -> None:
    stored = json.loads((reported.parent / "build" / "validation.json").read_text("utf-8"))
    for key in ("verdict", "backend", "steps", "limits", "not_measured", "lacking", "findings"):
        assert whole[key] == stored[key]
    assert whole["build"]["manifest_sha256"] == stored["manifest_sha256"]
    assert {row["file"]: row["sha256"] for row in whole["build"]["reference_files"]} == stored["reference_files"]
    answers = [(row["prompt"], row["answers"]["coreml"]["text"]) for row in whole["questions"]]
    assert answers == [(row["prompt"], row["coreml"]) for row in stored["answers"]]


def test_transcripts_spell_the_answers(whole: dict[str, Any]) -> None:
    for question in whole["questions"]:
        transcript = question["transcript"]
        assert len(transcript["steps"]) == 16
        told = transcript["steps"][: transcript["answer_steps"]]
        assert "".join(step["pytorch"]["text"] for step in told).strip() == question["answers"]["pytorch"]["text"]
        if transcript["answer_steps"] < 16:
            assert transcript["steps"][transcript["answer_steps"]]["pytorch"]["text"] == "<|im_end|>"
    worst = max(step["kl"] for row in whole["questions"] for step in row["transcript"]["steps"])
    assert worst == next(
        row["value"] for row in whole["limits"] if f"{row['quantity']}.{row['metric']}" == "answer.kl_step"
    )


def test_blocks_and_ranges_reach_the_limits_worst_values(whole: dict[str, Any]) -> None:
    worst = {f"{row['quantity']}.{row['metric']}": row["value"] for row in whole["limits"]}
    for part in ("encoder", "language"):
        losses = [row["loss_db"] for run in whole["blocks"] if run["part"] == part for row in run["blocks"]]
        assert max(losses) == worst[f"{part}_blocks.snr_loss_db"]
    assert [run["function"] for run in whole["blocks"]] == ["encode_256", "prefill", "decode"]
    assert [run["function"] for run in whole["ranges"]["runs"]] == ["encode_256", "prefill", "decode"]
    assert whole["ranges"]["largest"][0]["peak"] == worst["encoder.peak"]
    peaks = {run["function"]: [row["peak"] for row in run["blocks"]] for run in whole["ranges"]["runs"]}
    assert worst["language.peak"] == 10_000
    assert max(peaks["prefill"] + peaks["decode"]) < 1000, "the mask's −10,000 is no activation"
    blocks = [row["block"] for row in whole["blocks"][2]["blocks"]]
    assert [row["block"] for row in whole["ranges"]["runs"][2]["blocks"]] == [*blocks, "head"]


def test_a_reference_of_other_files_is_told(tiny: Path, tiny_build: Path, tmp_path: Path) -> None:
    """Only what the build was made from can prove it: a file that is another is marked, in the data and on the page."""
    other = shutil.copytree(tiny, tmp_path / "other")
    with (other / "generation_config.json").open("a") as file:
        file.write("\n")
    found = report(tiny_build, reference=other, other_reference=True, steps=1)
    assert found["verdict"] == "compared"
    assert [row["file"] for row in found["build"]["reference_files"] if row["differs"]] == ["generation_config.json"]
    page = parsed(html_page(found))
    (marked,) = [row for row in page.all("tr") if "differs from the build's source" in row.text]
    assert marked.attributes["class"] == "missed"
    assert "Not the checkpoint that this build was made from." in page.text


def test_sizes_are_the_files(whole: dict[str, Any], reported: Path) -> None:
    sizes, folder = whole["sizes"], reported.parent / "build"
    assert {row["file"]: row["bytes"] for row in sizes["files"]} == {
        row["file"]: (folder / row["file"]).stat().st_size for row in sizes["files"]
    }
    assert sizes["total_bytes"] == sum(row["bytes"] for row in sizes["files"])
    assert sizes["state_bytes"] == 8 * 2 * 32 * 2048 * 2


def test_an_encoder_alone(app_build: Path) -> None:
    found = report(app_build)
    assert found["verdict"] == "passed"
    assert found["score"] is None
    assert [row["transcript"] for row in found["questions"]] == [None] * 3
    assert all(row["encoder"][0]["psnr_db"] > 60 for row in found["questions"])
    assert [run["function"] for run in found["blocks"]] == ["main"]
    assert found["times"]["contenders"][0]["stages"][0]["stage"] == "encode"


def test_layer_by_layer_nothing_is_timed(tiny_build: Path) -> None:
    found = report(tiny_build, steps=2, layerwise=True)
    assert found["times"] is None
    assert all(len(row["transcript"]["steps"]) == 2 for row in found["questions"])
    assert [run["function"] for run in found["ranges"]["runs"]] == ["encode_256", "prefill", "decode"]


def test_questions_behind_the_fourth_have_answers_alone(tiny_build: Path, tmp_path: Path) -> None:
    sample = shipped_samples()[0]
    Image.new("RGB", (900, 600), "red").save(tmp_path / "wide.jpg")
    rows = [{"image": str(sample.picture), "prompt": f"What is {number}?"} for number in range(4)]
    rows.append({"image": "wide.jpg", "prompt": "What colour is it?", "answer": "a whale"})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = report(tiny_build, questions=tmp_path / "q.jsonl", steps=1)
    assert [row["transcript"] is None for row in found["questions"]] == [False] * 4 + [True]
    assert [row["picture"] for row in found["questions"]] == [0, 0, 0, 0, 1]
    assert [(row["name"], row["width"], row["height"]) for row in found["pictures"]] == [
        (sample.name, 256, 256), ("wide.jpg", 480, 320),
    ]  # fmt: skip
    assert found["questions"][4]["answers"]["pytorch"]["right"] is False
    assert not list(tiny_build.rglob("wide*")), "a user's picture is in the report alone"


def test_many_pictures_are_small_and_then_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.effect_noise((1000, 800), 90).convert("RGB").save(tmp_path / "noise.jpg", exif=b"Exif\0\0secret")
    named = [(f"{number}.jpg", tmp_path / "noise.jpg") for number in range(pictures.MOST + 2)]
    found = pictures.embedded(named)
    assert {(row["width"], row["height"], row["type"]) for row in found[: pictures.MOST]} == {(240, 192, "image/jpeg")}
    assert [row["data"] for row in found[pictures.MOST :]] == [None] * 2
    assert sum(len(row["data"] or "") for row in found) < 1_000_000
    assert pictures.embedded(named[:1])[0]["width"] == 480
    import base64

    assert b"secret" not in base64.b64decode(found[0]["data"])


def test_a_build_that_fails_is_reported_too(
    exported_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logit of the package stands in another token's place."""
    from validation.engine import PackageEngine

    plain = PackageEngine.decode
    monkeypatch.setattr(PackageEngine, "decode", lambda *a: plain(*a)[::-1].copy())
    found = report(Path(shutil.copytree(exported_tiny, tmp_path / "build")), steps=3)
    assert found["verdict"] == "failed"
    steps = [step for row in found["questions"] for step in row["transcript"]["steps"]]
    apart = [step for step in steps if step["pytorch"]["id"] != step["coreml"]["id"]]
    assert apart
    for step in apart:
        mine, theirs = step["pytorch"]["probability"], step["coreml"]["probability"]
        assert mine["pytorch"] > mine["coreml"], "each side prefers its own token"
        assert theirs["coreml"] > theirs["pytorch"]
    listed = [row["of"] for row in found["differing_steps"]]
    assert listed.count("answer") == len(apart)
    assert listed.count("language") > 0, "and those of the decoder alone"
