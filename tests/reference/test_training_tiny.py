"""The embedded checkpoint: it looks, it answers, it is small, and it is what the recipe's own config says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.training.evaluate import (
    LEAST_OVERALL,
    LEAST_PER_FORM,
    MOST_BLACK,
    OVERALL,
    Asked,
    Report,
    Score,
    evaluate,
    unseen_questions,
)
from fastvlm_ref.training.questions import FORMS
from fastvlm_ref.training.stages import TINY
from fastvlm_ref.training.vocabulary import write_vocabulary

ASKED = 198  # 22 of each form; one wrong answer of 22 is 5 %, so a form may miss four


@pytest.fixture(scope="module")
def model() -> FastVLM:
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def questions() -> list[Asked]:
    return unseen_questions(ASKED)


@pytest.fixture(scope="module")
def score(model: FastVLM, questions: list[Asked]) -> Score:
    return evaluate(model, model.tokenizer, questions)


@pytest.mark.parametrize("form", FORMS)
def test_it_answers_unseen_questions(score: Score, form: str) -> None:
    assert score.share(form) >= LEAST_PER_FORM, score.wrong


def test_it_answers_nine_of_ten_questions(score: Score) -> None:
    assert score.share() >= LEAST_OVERALL, score.wrong


def test_it_cannot_answer_with_the_picture_black(model: FastVLM, questions: list[Asked]) -> None:
    assert evaluate(model, model.tokenizer, questions[::2], black=True).share() <= MOST_BLACK


def test_it_answers_from_its_own_picture(model: FastVLM, questions: list[Asked]) -> None:
    """The same questions about other pictures: a model that looks is then mostly wrong."""
    pictures = [one.scene for one in questions]
    swapped = [Asked(picture, one.question) for picture, one in zip(pictures[1:], questions[:-1], strict=True)]
    assert evaluate(model, model.tokenizer, swapped[::2]).share() <= MOST_BLACK


def test_the_shipped_pictures_are_answered_as_stated(model: FastVLM, tiny: Path) -> None:
    rows = json.loads((tiny / "pictures" / "examples.json").read_text())
    assert len(rows) == 3
    sizes = set()
    for row in rows:
        with Image.open(tiny / "pictures" / row["image"]) as picture:
            picture.load()
        sizes.add(picture.width == picture.height)
        assert "".join(model.generate(picture, row["prompt"], 40)) == row["answer"]
    assert sizes == {True, False}  # one is padded


def test_the_folder_is_small_and_in_apples_layout(tiny: Path) -> None:
    assert sum(file.stat().st_size for file in tiny.rglob("*") if file.is_file()) <= 8_000_000
    assert json.loads((tiny / "config.json").read_text())["mm_vision_tower"] == "mobileclip_l_256"
    with safe_open(tiny / "model.safetensors", "pt") as weights:  # type: ignore[no-untyped-call]
        names = set(weights.keys())
        kinds = {name: weights.get_slice(name).get_dtype() for name in names}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.mm_projector.0.weight"} <= names
    assert {kind for name, kind in kinds.items() if name.endswith("num_batches_tracked")} == {"I64"}
    assert {kind for name, kind in kinds.items() if not name.endswith("num_batches_tracked")} == {"BF16"}


def test_it_is_the_model_of_the_recipe(model: FastVLM) -> None:
    assert (model.config.vision, model.config.text) == (TINY.vision, TINY.text)
    assert model.config.licence == "apache-2.0"
    assert model.config.prompt.image_token_id == IMAGE_TOKEN


def test_the_vocabulary_is_reproduced_to_the_byte(tiny: Path, tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        assert file.read_bytes() == (tiny / file.name).read_bytes(), file.name


def test_a_report_names_every_limit_that_is_missed() -> None:
    good = Report({"size": (500, 0.9, 0.5), OVERALL: (500, 0.95, 0.3)})
    assert good.good
    bad = Report({"size": (500, 0.7, 0.5), OVERALL: (500, 0.85, 0.5)})
    assert [problem.split()[0] for problem in bad.missed] == ["overall", "size", "50.0%"]
