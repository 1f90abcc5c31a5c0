"""The loop: packing changes nothing, an interrupted run ends like one that was not, and it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
import tokenizers
import torch
from torch import Tensor

from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.config import FastVLMConfig, PromptConfig
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.tokenizer import Tokenizer, load_tokenizer
from fastvlm_ref.training import loop
from fastvlm_ref.training.batch_norm import add_batch_norms, fold_batch_norms
from fastvlm_ref.training.batches import DrawnScenes
from fastvlm_ref.training.finding import FindingHeads
from fastvlm_ref.training.initial import initialise
from fastvlm_ref.training.packing import Block, Packed, answer_loss, layer_states, pack
from fastvlm_ref.training.questions import Question
from fastvlm_ref.training.saving import chat_template, save_llava
from fastvlm_ref.training.scenes import Shape
from fastvlm_ref.training.stages import ENCODER, LANGUAGE, STAGE_1, STAGE_2, STAGE_2B, STAGE_2C, STAGES, TINY, Stage

pytestmark = pytest.mark.usefixtures("one_thread")
train_stage = partial(loop.train_stage, made_from={}, background=False)
SMALLER = replace(
    TINY,
    vision=replace(
        TINY.vision, depths=(1, 1, 1, 1, 1), widths=(4, 8, 16, 32, 64), mlp_widths=(4, 8, 16, 32, 64), features=64
    ),
    text=replace(TINY.text, hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64),
)


def short(stage: Stage, steps: int = 4) -> Stage:
    return replace(stage, steps=steps, pictures=2, questions=2, ends_at=None)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return load_tokenizer(tiny, TINY.text.vocab_size)


def loss_of(decoder: Decoder, packed: Packed) -> tuple[Tensor, dict[str, float]]:
    return answer_loss(decoder, packed, layer_states(decoder, packed, None)[-1])


def new_model(config: FastVLMConfig = SMALLER) -> FastVLM:
    model = FastVLM(config)
    initialise(model, 0)
    add_batch_norms(model.vision_encoder)
    return model


def different(model: FastVLM, other: FastVLM) -> list[str]:
    theirs = other.state_dict()
    return [name for name, value in model.state_dict().items() if not torch.equal(value, theirs[name])]


def test_questions_packed_behind_one_prefix_cost_what_they_cost_alone() -> None:
    decoder = new_model().decoder.eval()
    prefix, blocks = [5, 6, 7], [Block([8, 9], [10, 11]), Block([12], [13, 14, 15])]
    with torch.no_grad():
        together = loss_of(decoder, pack([(prefix, blocks)]))[0] * 5
        apart = [loss_of(decoder, pack([(prefix, [block])]))[0] * len(block.answer) for block in blocks]
        rows = decoder.head(decoder(decoder.embed_tokens(torch.tensor([[*prefix, 12, 13, 14]]))))
        plain = torch.nn.functional.cross_entropy(rows[0, -3:], torch.tensor([13, 14, 15]), reduction="sum")
    torch.testing.assert_close(together, sum(apart))
    torch.testing.assert_close(apart[1], plain)


def test_padding_a_row_changes_no_loss() -> None:
    decoder = new_model().decoder.eval()
    short_row, long_row = ([5], [Block([8], [9])]), ([5, 6, 7], [Block([8] * 20, [9] * 5)])
    with torch.no_grad():
        alone = loss_of(decoder, pack([short_row]))[0]
        both = loss_of(decoder, pack([short_row, long_row]))[0] * 6
        other = loss_of(decoder, pack([long_row]))[0] * 5
    torch.testing.assert_close(both, alone + other)


@pytest.mark.parametrize("stage", [ENCODER, LANGUAGE, STAGE_2, STAGE_2B, STAGE_2C], ids=lambda stage: stage.name)
def test_an_interrupted_run_ends_with_the_same_weights(
    stage: Stage, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, source = short(stage), DrawnScenes(tokenizer)
    whole, first, second = new_model(), new_model(), new_model()
    train_stage(whole, stage, source, tmp_path / "whole", save_every=2)
    train_stage(first, stage, source, tmp_path / "cut", stop_at=2, save_every=2)
    only_the_rest = partial(loop.batches, source, stage, 2, 4, background=False)
    monkeypatch.setattr(loop, "batches", lambda _, __, start, *___, **____: {2: only_the_rest}[start]())
    train_stage(second, stage, source, tmp_path / "cut", save_every=2)
    assert different(whole, second) == []
    assert different(whole, first)  # the comparison sees a difference where there is one


def test_a_stage_moves_only_what_it_trains(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = new_model()
    train_stage(model, short(STAGE_1, 2), DrawnScenes(tokenizer), tmp_path)
    assert {name.split(".")[0] for name in different(model, new_model())} == {"projector"}


def test_what_is_named_and_told_is_marked_where_it_lies(tokenizer: Tokenizer) -> None:
    """The labels stand at the names of a prompt, at its end, and before each shape of a caption."""
    star, ring = (
        Shape(kind, colour, "big", row, column, 0.0, 0.0, 30.0, 0.0, (0, 0, 0))
        for kind, colour, row, column in (("star", "red", 0, 2), ("ring", "blue", 2, 1))
    )
    source = DrawnScenes(tokenizer)
    side = source.block(
        Question("side", "Where is the ring, seen from the star?", "below", (("ring", ring), ("star", star)))
    )
    words = [tokenizer.decode([token]) for token in side.prompt]
    last = len(words) - 1
    assert side.marks == {
        words.index(" ring"): (5, 2, 1, 7, -100, -100),
        words.index(" star"): (3, 0, 1, 2, -100, -100),
        last: (-100, -100, -100, -100, 7, 2),
    }
    told = source.block(Question("caption", "Describe the picture.", "a red star and a blue ring", (), (star, ring)))
    answer = [tokenizer.decode([token]) for token in told.prompt + told.answer]
    firsts = {place: labels[4] for place, labels in told.marks.items()}
    assert firsts == {
        **dict.fromkeys(range(answer.index(" red") - 2, answer.index(" red") + 1), 2),
        **dict.fromkeys(range(answer.index(" blue") - 2, answer.index(" blue") + 1), 7),
    }
    moved = pack([([5, 6], [side, told])]).marks
    assert moved[0].tolist() == [0, 2 + words.index(" ring"), 5, 2, 1, 7, -100, -100]
    assert moved[3, 1] == 2 + len(side.prompt) + len(side.answer) - 1 + min(told.marks)


def test_heads_that_find_are_right_where_their_labels_are() -> None:
    heads = FindingHeads(4, 4)
    states = [torch.randn(1, 3, 4, requires_grad=True) for _ in range(4)]
    marks = torch.tensor([[0, 1, 2, 1, 0, 5, -100, -100], [0, 2, -100, -100, -100, -100, 3, -100]])
    loss, seen = heads.loss(states, marks)
    loss.backward()
    moved = [0.0 if state.grad is None else state.grad.abs().sum((0, 2)) for state in states]
    assert moved[0] == moved[3] == 0.0
    assert (moved[1] > 0).tolist() == [False, True, False]
    assert (moved[2] > 0).tolist() == [False, False, True]
    assert math.isnan(seen["finds_second"])


def test_a_few_steps_lower_the_loss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    stage = replace(short(LANGUAGE, 40), rate=5e-3, pictures=4)
    train_stage(new_model(), stage, DrawnScenes(tokenizer), tmp_path, save_every=40)
    first, last = [json.loads(line)["loss"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert last < 0.8 * first


def test_scenes_of_two_stages_never_meet() -> None:
    from fastvlm_ref.training.batches import _numbers

    spans = [(_numbers(stage, 0).start, _numbers(stage, stage.steps).stop) for stage in STAGES.values()]
    spans.sort()
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))


def test_the_schedule_rises_for_three_percent_and_falls_to_zero() -> None:
    stage = replace(STAGE_2, steps=1000)
    assert stage.rate_at(0) == pytest.approx(1 / 30)
    assert stage.rate_at(29) == stage.rate_at(30) == 1.0
    assert stage.rate_at(999) < 1e-4


def test_folding_batch_norms_changes_no_feature(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = new_model()
    train_stage(model, short(ENCODER, 2), DrawnScenes(tokenizer), tmp_path)
    names = [name for name, _ in FastVLM(SMALLER).named_parameters()]
    pixels = torch.rand(2, 3, 256, 256)
    encoder = model.eval().vision_encoder
    with torch.no_grad():
        before = encoder(pixels)
        fold_batch_norms(encoder)
        after = encoder(pixels)
    assert [name for name, _ in model.named_parameters()] == names
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_a_saved_folder_reads_back_rounded_to_bf16(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = FastVLM(SMALLER).eval()
    initialise(model, 3)
    save_llava(model.to(memory_format=torch.channels_last), tokenizer, tmp_path)
    read = load_checkpoint(tmp_path)
    assert read.config.vision == SMALLER.vision
    assert read.config.text == SMALLER.text
    saved = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    for name, value in saved.items():
        assert torch.equal(read.state_dict()[name], value.to(torch.bfloat16).float()), name


@pytest.mark.parametrize("system", [None, "Answer in one word.", "It's <odd>:\n a \\ and {{ braces }}."])
def test_a_saved_folder_states_its_template_and_system_text(
    system: str | None, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = FastVLM(SMALLER).eval()
    model.config = replace(model.config, prompt=PromptConfig(system=system))
    save_llava(model, tokenizer, tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    read = load_checkpoint(tmp_path)
    assert read.config.assumed == ()
    assert read.config.prompt.system == (system or "You are a helpful assistant.")
    text = jinja2.Template((tmp_path / "chat_template.jinja").read_text()).render(
        messages=[{"role": "user", "content": "<image>\nWhat?"}], add_generation_prompt=True
    )
    stock = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tuple(stock.encode(piece).ids for piece in text.split("<image>"))
    assert ids == encode_prompt(tokenizer, "What?", read.config.prompt)


@pytest.mark.parametrize("prompt", [PromptConfig(template="plain"), PromptConfig(system="End with <|im_end|>.")])
def test_what_a_chat_template_cannot_state_is_not_written(prompt: PromptConfig) -> None:
    assert chat_template(prompt) is None
