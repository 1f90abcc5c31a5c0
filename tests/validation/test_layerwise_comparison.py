"""A comparison layer by layer finds what one in memory finds, to the last bit, and says what it leaves out."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from export import export
from fastvlm.errors import UsageError
from fastvlm_ref.samples import shipped_samples
from validation import validate
from validation.judging import needs_layerwise

STEPS = 6
LEFT_OUT = {"state.keys_loss_db", "state.values_loss_db", "state.chunking_loss_db"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiny in four packages with eight-bit rows."""
    return export("tiny", tmp_path_factory.mktemp("chain") / "build", max_file_size=1_200_000)


@pytest.fixture(params=["whole", pytest.param("chain", marks=pytest.mark.long)])
def build(request: pytest.FixtureRequest, exported_tiny: Any, chain: Any, tmp_path: Any) -> Any:
    return shutil.copytree(exported_tiny if request.param == "whole" else chain, tmp_path / "build")


def test_every_number_is_that_of_a_comparison_in_memory(build: Any, tmp_path: Any, heard: Any) -> None:
    other = shutil.copytree(build, tmp_path / "other")
    whole = validate(build, steps=STEPS)
    parts = validate(other, steps=STEPS, layerwise=True, progress=heard)
    assert parts.passed
    assert set(parts.not_measured) == LEFT_OUT
    assert parts.rows == tuple(row for row in whole.rows if row.limit.key not in LEFT_OUT)
    assert parts.answers == whole.answers
    for name in ("selftest.json", "features.bin", "picture.png", "photo.png"):
        assert (build / "selftest" / name).read_bytes() == (other / "selftest" / name).read_bytes()
    (said,) = [note for note in heard.notes if "layer by layer" in note]
    assert f"{STEPS} steps on 3 samples" in said


def test_what_goes_wrong_is_found_there_too(exported_tiny: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Every logit of the package is a little off, as a wrong head would make it."""
    from validation.layerwise import comparison

    plain = comparison.logits_of_all
    monkeypatch.setattr(comparison, "logits_of_all", lambda *a, **b: [rows[:, ::-1].copy() for rows in plain(*a, **b)])
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    verdict = validate(build, steps=2, layerwise=True)
    missed = {row.limit.key for row in verdict.rows if not row.passed}
    assert {"language.kl", "answer.kl", "language.divergences"} <= missed
    assert any(not row.same for row in verdict.answers)


def test_other_pictures_leave_a_self_test_on_the_shipped_one(exported_tiny: Any, tmp_path: Any) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(shipped_samples()[2].picture, pictures)
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    assert validate(build, images=pictures, steps=2, layerwise=True).passed
    assert (
        json.loads((build / "selftest" / "selftest.json").read_text("utf-8"))["prompt"] == shipped_samples()[0].prompt
    )


def test_a_model_that_is_larger_than_half_the_memory_is_taken_so(
    exported_tiny: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("validation.layerwise.need.half_of_memory", lambda: 1 << 20)
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    verdict = validate(build)
    assert verdict.steps == 8
    assert set(verdict.not_measured) == LEFT_OUT


def test_more_questions_than_are_compared_in_full_are_refused(
    exported_tiny: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("validation.layerwise.need.half_of_memory", lambda: 1 << 20)
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    row = json.dumps({"image": str(shipped_samples()[0].picture), "prompt": "Which number do you see?"})
    questions = tmp_path / "questions.jsonl"
    questions.write_text(f"{row}\n" * 5)
    with pytest.raises(UsageError, match=r"holds 5 questions.*on 4 at most"):
        validate(build, questions=questions)


def test_tiny_fits_into_memory(exported_tiny: Any) -> None:
    from fastvlm.build import read_build
    from fastvlm_ref.checkpoint import load_checkpoint

    assert not needs_layerwise(read_build(exported_tiny), load_checkpoint("tiny").config.text)
