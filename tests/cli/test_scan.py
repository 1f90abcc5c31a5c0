"""`fastvlm scan`: what it shows, what it keeps, and that bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typed import Run

from fastvlm.hashes import hash_tree


@pytest.fixture
def loud(checkpoint: Path) -> Path:
    """A checkpoint whose logits no fp16 holds."""
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = (tensors["model.norm.weight"].float() * 2.0**18).to(torch.bfloat16)
    save_file(tensors, weights, metadata={"format": "pt"})
    return checkpoint


def test_a_scan_shows_parts_largest_tensors_and_the_next_command(run: Run, small_checkpoint: Path, cache: Path) -> None:
    result = run("scan", small_checkpoint, "--image-size", 64, "--image-size", 128)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("12 pictures at 64, 128 pixels; ")
    assert [line.split(":")[0] for line in lines if line and not line.startswith(" ")][1:] == [
        "encoder", "decoder", "nothing has to be scaled",
    ]  # fmt: skip
    assert lines.count("  first beyond 65,504: none") == 2
    assert lines.count("  first beyond 32,768: none") == 2
    assert sum(line.startswith("  most subnormals: ") for line in lines) == 2
    assert sum("  encoder." in line for line in lines) == sum("  decoder." in line for line in lines) == 10
    assert lines[-1] == "nothing has to be scaled"
    notes = result.stderr.splitlines()
    assert any(note.startswith("note: scanning 12 pictures at 64, 128 pixels") for note in notes)
    assert notes[-1] == f"next: fastvlm export {small_checkpoint} -o BUILD --image-size 64 --image-size 128"
    again = run("scan", small_checkpoint, "--image-size", 128, "--allow-pickle")
    assert again.stderr.splitlines()[-1].endswith("-o BUILD --image-size 128 --allow-pickle")
    assert again.stdout == result.stdout
    assert "note: this checkpoint was scanned before; --again scans it anew" in again.stderr.splitlines()
    assert len(list((cache / "scans").iterdir())) == 1


def test_json_is_one_document(run: Run) -> None:
    result = run("scan", "tiny", "--json")
    content = json.loads(result.stdout)
    assert set(content) == {"ranges", "protection", "problems"}
    assert content["problems"] == []
    assert content["protection"] == {}
    assert content["ranges"]["image_sizes"] == [256]
    assert content["ranges"]["first_beyond"] == {"65504": None, "32768": None}
    assert {"name", "peak", "subnormal", "worst"} == set(content["ranges"]["tensors"][0])
    assert result.stderr.splitlines()[-1] == "next: fastvlm export tiny -o BUILD"


def test_what_no_exponent_cures_is_exit_1(run: Run, loud: Path) -> None:
    result = run("scan", loud)
    assert result.exit_code == 1
    problems = [line for line in result.stderr.splitlines() if line.startswith("problem: ")]
    assert [line.split()[1] for line in problems] == ["decoder.norm", "decoder.lm_head"]
    assert "fp16 makes it infinite" in problems[0]
    assert "first beyond 65,504: decoder.norm norm" in result.stdout
    result = run("export", loud, "-o", loud.parent / "build", "--only", "language", "--context", 512)
    assert result.exit_code == 0
    assert sum("no power of two can be taken out" in line for line in result.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tiny", "--image-size", 100), "--image-size is 100, expected a multiple of 64"),
        (("tiny", "--image-size", 0), "0 is not in the range x>=1"),
        (("tiny", "--calibration", "nothing"), "--calibration nothing is not a folder"),
        (("tiny", "--calibration", "EMPTY"), "EMPTY holds no picture"),
        (("tiny", "--calibration", "BAD"), "bad.png is not a picture"),
        (("tiny", "--calibration", ""), "it is empty"),
        (("",), "it is empty"),
        (("EMPTY",), "expected"),
        (("nothing/at/all",), "no such folder"),
        (("tiny", "--base", "tiny"), "--base is for LoRA adapters"),
        ((), "Missing argument 'CHECKPOINT'"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, words: tuple[Any, ...], says: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BAD").mkdir()
    (tmp_path / "BAD" / "bad.png").write_bytes(b"no picture")
    before = hash_tree(tmp_path)
    result = run("scan", *words)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("Error: ")
    assert says in line
    assert (result.exit_code, result.stdout) == (2, "")
    assert hash_tree(tmp_path) == before
    assert list(cache.iterdir()) == []


def test_pictures_of_the_users_own_are_seen(run: Run, picture: Path) -> None:
    result = run("scan", "tiny", "--image-size", 64, "--calibration", picture.parent, "--json")
    assert "red.png" in json.loads(result.stdout)["ranges"]["pictures"]
