"""`fastvlm run … --then`: several questions about one picture; each further one computes its own words alone."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))

from typed import typed

from fastvlm_ref.conversation import Conversation
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.generate import Timings
from fastvlm_ref.image import open_image
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_follow_up
from fastvlm_ref.remembering import Remembering
from fastvlm_ref.samples import shipped_samples

QUESTIONS = ("Describe the picture.", "How many of them?", "Which colour?")
LENGTH = 8
PICTURE = shipped_samples()[0].picture
FURTHER = [word for text in QUESTIONS[1:] for word in ("--then", text)]


@pytest.fixture
def target(request: pytest.FixtureRequest, written_onnx: Path, exported_tiny: Path) -> tuple[str, Path | str]:
    """A backend, and what it runs."""
    return request.param, {"onnx": written_onnx, "mil": exported_tiny, "torch": "tiny"}[request.param]


def words(*more: str) -> list[str]:
    return [str(PICTURE), QUESTIONS[0], *more, "--max-new-tokens", str(LENGTH)]


@pytest.mark.parametrize("target", ["onnx", "mil", "torch"], indirect=True)
def test_each_turn_computes_its_own_words(target: tuple[str, Path | str], tiny_model: FastVLM) -> None:
    backend, it = target
    result = typed("run", it, *words(*FURTHER), "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["backend"] == backend
    turns = content["turns"]
    assert [turn["prompt"] for turn in turns] == list(QUESTIONS)
    assert turns[0]["kept_positions"] == 0
    for before, turn in pairwise(turns):
        own = len(encode_follow_up(tiny_model.tokenizer, turn["prompt"]))
        assert turn["prompt_positions"] > before["prompt_positions"] + own, "the whole conversation is its prompt"
        assert 0 < turn["prompt_positions"] - turn["kept_positions"] <= own + 1  # an answer's last id was never decoded
    for turn in turns:
        seconds = turn["seconds"]
        stages = ("picture", "encoder", "prefill", "first_token")
        assert seconds["to_first_token"] == pytest.approx(sum(seconds[stage] for stage in stages), abs=3e-4)


def test_the_answers_are_those_of_one_conversation(tiny_model: FastVLM) -> None:
    """Asked as a conversation, without a memory, by PyTorch; a question asked alone has another answer."""
    told = Conversation(TorchEngine(tiny_model, 2048), tiny_model.tokenizer, open_image(PICTURE))
    expected, positions = [], []
    for text in QUESTIONS:
        timings = Timings()
        expected.append("".join(told.ask(text, LENGTH, timings=timings)))
        positions.append(timings.prompt_positions)
    turns = json.loads(typed("run", "tiny", *words(*FURTHER), "--json").stdout)["turns"]
    assert [turn["text"] for turn in turns] == expected
    assert [turn["prompt_positions"] for turn in turns] == positions


def test_answers_go_to_stdout_and_all_else_to_stderr(written_onnx: Path) -> None:
    turns = json.loads(typed("run", written_onnx, *words(*FURTHER), "--json").stdout)["turns"]
    result = typed("run", written_onnx, *words(*FURTHER))
    assert result.stdout == "".join(f"{turn['text']}\n" for turn in turns)
    lines = result.stderr.splitlines()
    asked = [place for place, line in enumerate(lines) if line.startswith("> ")]
    assert [lines[place] for place in asked] == [f"> {text}" for text in QUESTIONS[1:]]
    for place, turn in zip(asked, turns[1:], strict=True):
        assert lines[place + 1].startswith("onnx: first token after ")
        assert (
            f"{turn['prompt_positions']} prompt positions, {turn['kept_positions']} of them kept)" in lines[place + 1]
        )
    assert sum(" nodes on cpu" in line for line in lines) == 2


def test_one_question_is_answered_as_ever(written_onnx: Path) -> None:
    content = json.loads(typed("run", written_onnx, *words(), "--json").stdout)
    assert list(content) == ["text", "backend", "seconds", "nodes"]
    assert set(content["seconds"]) == {"picture", "encoder", "prefill", "first_token", "decode"}
    result = typed("run", written_onnx, *words())
    assert result.stdout == f"{content['text']}\n"
    assert "prompt positions)" in result.stderr
    assert "kept" not in result.stderr
    assert "> " not in result.stderr


def test_a_question_that_cannot_be_asked_is_refused_before_the_first_answer(
    written_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remembering, "encode_image", lambda *_: pytest.fail("it began"))
    for further, reason in ((" ", "the prompt is empty"), ("a " * 3000, "of a context of ")):
        result = typed("run", written_onnx, *words("--then", "Why?", "--then", further))
        assert result.exit_code == 2
        assert reason in result.stderr
        assert result.stdout == ""
