"""`fastvlm check-official`, typed: what it prints, and 0 or 1, on a small checkpoint with numbers of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typed import Run

from validation.official import check
from validation.official.published import Published

ROW = Published("small", 3, 64, (288,), (0.0, 0.0, 0.0), 0, 128)


@pytest.fixture
def scene(tmp_path: Path, tiny: Path) -> Path:
    """A drawn scene of 640×480."""
    with Image.open(tiny / "pictures" / "shapes.png") as shapes:
        shapes.convert("RGB").resize((640, 480)).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def published(small_checkpoint: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """What the small checkpoint gives, rounded to steps of a bfloat16 below 1."""
    monkeypatch.setattr(check, "PUBLISHED", [ROW])
    found = check.check_official(small_checkpoint, scene)
    row = replace(ROW, logits=tuple(round(row.here * 256) / 256 for row in found.logits), positions=found.positions)
    monkeypatch.setattr(check, "PUBLISHED", [row])
    return row


def test_a_pass_asks_to_be_reported(run: Run, small_checkpoint: Path, scene: Path, published: Published) -> None:
    result = run("check-official", small_checkpoint, "--image", scene)
    assert result.exit_code == 0, result.output
    assert "recognised as small: 3 layers, width 64, 288 rows\n" in result.stdout
    assert f"positions: {published.positions}, expected {published.positions}\n" in result.stdout
    assert f"{published.logits[1]:.4f}" in result.stdout
    assert "a difference may be up to" in result.stdout
    assert "MISSED" not in result.stdout
    assert result.stdout.endswith("verdict: passed\n")
    assert "please report it" in result.stderr
    assert f"next: fastvlm scan {small_checkpoint}\n" in result.stderr


def test_other_logits_end_with_1(
    run: Run, small_checkpoint: Path, scene: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PUBLISHED", [replace(published, logits=(4.125, 9.6875, 11.1875))])
    result = run("check-official", small_checkpoint, "--image", scene)
    assert result.exit_code == 1
    assert "verdict: FAILED" in result.stdout
    assert "Error: official.logit_error = " in result.stderr
    assert "the picture may be another one" in result.stderr
    assert f'next: fastvlm run {small_checkpoint} {scene} "What are these?"' in result.stderr
    assert "report it, with" not in result.stderr


def test_other_positions_blame_the_tokenizer(
    run: Run, small_checkpoint: Path, scene: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PUBLISHED", [replace(published, positions=280)])
    result = run("check-official", small_checkpoint, "--image", scene, "--json")
    assert result.exit_code == 1
    assert "official.differing_positions" in result.stderr
    assert "the tokenizer is not the one" in result.stderr
    found = json.loads(result.stdout)
    assert (found["verdict"], found["size"], found["expected_positions"]) == ("failed", "small", 280)
    assert [row["passed"] for row in found["limits"]] == [False, True, True]
    assert [row["published"] for row in found["logits"]] == list(published.logits)
    assert "convert_fastvlm_weights_to_hf.py" in found["source"]
