"""What is counted of the answers, and whole files of questions on a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastvlm.errors import ImageError, PromptError, UsageError
from fastvlm_ref.samples import shipped_samples
from validation import validate
from validation.comparison import Comparison
from validation.engine import PackageEngine
from validation.questions import AnswerRow, is_right, score

SHIPPED = shipped_samples()
Ask = Callable[..., Path]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("a cat", True), ("A Cat.", True), (" a cat \n", True), ("a cat .", True), ("A CAT", True),
        ("cat", False), ("a cat!", False), ("a  cat", False), ("a cat..", False), ("", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_but_for_case_and_a_full_stop(said: str, right: bool) -> None:
    assert is_right(said, "a cat") is is_right(said, "A cat.") is right
    assert not is_right(said, None)


def test_agreement_and_right_answers_are_counted_apart() -> None:
    rows = [
        AnswerRow("1", "?", "a cat", "a cat", "a dog"),
        AnswerRow("2", "?", "A cat.", "a dog", "a cat"),
        AnswerRow("3", "?", "a cat", "a cat", None),
        AnswerRow("4", "?", "no", "yes", "yes"),
        AnswerRow("5", "?", "yes", "yes", "Yes."),
    ]
    found = score(rows, in_full=2)
    assert vars(found) == {
        "count": 5, "in_full": 2, "agree": 3, "answered": 4, "build_right": 2, "reference_right": 2,
    }  # fmt: skip
    assert found.in_words() == (
        "build and PyTorch agree on 3 of 5; of 4 with a known answer the build has 2 right, PyTorch 2; "
        "compared in full: the first 2, of the others the answers alone"
    )
    assert score(rows[2:3], in_full=4).in_words() == "build and PyTorch agree on 1 of 1"


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Writes a file of questions: rows of fields."""

    def write(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return write


def shipped(number: int, **more: Any) -> dict[str, Any]:
    """The question of a shipped picture."""
    return {"image": str(SHIPPED[number].picture), "prompt": SHIPPED[number].prompt, **more}


def test_after_the_first_four_the_answers_alone_are_compared(tiny_build: Path, ask: Ask, heard: Any) -> None:
    rows = [shipped(number % 3, answer=SHIPPED[number % 3].answer) for number in range(5)] + [shipped(1, answer="95")]
    verdict = validate(tiny_build, questions=ask(*rows), steps=20, progress=heard)
    assert verdict.passed
    assert vars(verdict.score) == {
        "count": 6, "in_full": 4, "agree": 6, "answered": 6, "build_right": 5, "reference_right": 5,
    }  # fmt: skip
    assert [row.coreml for row in verdict.answers] == [SHIPPED[number].answer for number in (0, 1, 2, 0, 1, 1)]
    assert heard.stages["Comparing with PyTorch"] == [4, 4]
    assert heard.stages["Asking both sides"] == [2, 2]
    assert "the first 4 questions are compared in full, of the other 2 the answers alone" in heard.notes
    stored = json.loads(verdict.path.read_text("utf-8"))
    assert stored["questions"] == vars(verdict.score)
    assert (tiny_build / "selftest").is_dir(), "made from the shipped picture, as ever"


def test_a_build_that_answers_otherwise_is_counted(tiny_build: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions behind the first four measure no limit; what they show is the count."""
    given, free = PackageEngine.decode, {"ly": False}
    ask_all = Comparison._ask_all

    def freely(self: Comparison, samples: Any) -> Any:
        free["ly"] = True
        return ask_all(self, samples)

    monkeypatch.setattr(Comparison, "_ask_all", freely)
    monkeypatch.setattr(PackageEngine, "decode", lambda self, row: given(self, row) * (-1 if free["ly"] else 1))
    verdict = validate(tiny_build, questions=ask(*[shipped(1)] * 4, shipped(1, answer="94")), steps=6)
    assert verdict.passed
    assert (verdict.score.agree, verdict.score.build_right, verdict.score.reference_right) == (4, 0, 1)
    assert not verdict.answers[-1].same


def test_pictures_of_one_name_are_told_apart(tiny_build: Path, ask: Ask, tmp_path: Path) -> None:
    rows = []
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / name / "same.png")
        rows.append({"image": f"{name}/same.png", "prompt": "What?"})
    verdict = validate(tiny_build, questions=ask(*rows), steps=2)
    assert [row.image for row in verdict.answers] == ["same.png (picture 1)", "same.png (picture 2)"]
    (kl,) = (row for row in verdict.rows if row.limit.key == "language.kl")
    assert kl.subject == "mean of 4 steps", "none took the other's place"


def test_what_is_wrong_is_said_before_the_checkpoint_is_read(
    tiny_build: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.original.load_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UsageError, match="line 2: prompt is missing"):
        validate(tiny_build, questions=ask(shipped(0), {"image": "a"}))
    with pytest.raises(UsageError, match="--images and --questions both"):
        validate(tiny_build, questions=ask(shipped(0)), images=tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png is not a picture"):
        validate(tiny_build, questions=ask(shipped(0), {"image": "text.png", "prompt": "What?"}))
    with pytest.raises(ImageError, match=r"text\.png is not a picture"):
        validate(tiny_build, images=tmp_path)


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_computed(
    tiny_build: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.comparison.encode", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(PromptError, match=r"number\.png: the prompt takes \d+ positions"):
        validate(tiny_build, questions=ask(shipped(0), shipped(1, prompt="blue " * 3000)))


@pytest.mark.long
def test_a_language_model_alone_is_compared_on_every_question(ask: Ask, tmp_path: Path) -> None:
    from export import export

    build = export("tiny", tmp_path / "build", only="language")
    verdict = validate(build, questions=ask(*[shipped(1)] * 6), steps=2)
    assert verdict.passed
    assert (verdict.answers, verdict.score.count, verdict.pictures) == ((), 0, 6)


def test_an_encoder_alone_cannot_be_asked(ask: Ask, tmp_path: Path) -> None:
    from export import export

    build = export("tiny", tmp_path / "build", only="encoder")
    with pytest.raises(UsageError, match="has no language model to ask"):
        validate(build, questions=ask(shipped(1)))
