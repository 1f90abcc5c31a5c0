"""Generation: the cached loop against the whole model, budgets, stops, streams, timings; on a small lively model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_limits import check

from fastvlm.errors import ExecutionError, FastVLMError, ImageError, PromptError, TokenizerError, UsageError
from fastvlm_ref.config import IMAGE_TOKEN, LARGEST_SIDE
from fastvlm_ref.engine import Advice, TorchEngine
from fastvlm_ref.generate import Timings, generate_ids, generate_text
from fastvlm_ref.image import pixels_to_tensor, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt, stop_ids

IMAGE_TOKENS = 4  # (128 / 64)²
QUESTION = "How many red circles are there?"


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (90, 150, 3), dtype=np.uint8))


class Recorder:
    """An engine that only notes what is asked of it; its logits always prefer `likes`, one after the other."""

    context, image_size, together = 64, 128, 1
    advice = Advice("take a longer one", "look at the engine")

    def __init__(self, likes: Sequence[int] = (3,)) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.likes = list(likes)

    def tokens_at(self, side: int) -> int:
        assert side == 128
        return IMAGE_TOKENS

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        self.calls.append(("encode", pixels.shape))
        return np.full((IMAGE_TOKENS, 2), -1, np.float32)

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        return np.array([[id_, id_] for id_ in ids], np.float32)

    def reset(self) -> None:
        self.calls.append(("reset",))

    def prefill(self, embeds: np.ndarray) -> None:
        self.calls.append(("prefill", *embeds[:, 0].astype(int).tolist()))

    def decode(self, embed: np.ndarray) -> np.ndarray:
        assert 1 <= len(embed) <= self.together
        self.calls.append(("decode", *embed[:, 0].astype(int).tolist()))
        logits = np.zeros(10, np.float32)
        logits[self.likes.pop(0) if len(self.likes) > 1 else self.likes[0]] = 1
        return logits


PIXELS = np.zeros((128, 128, 3), np.uint8)


# Numbers


@pytest.mark.parametrize("seed", [0, 1])
def test_cached_steps_equal_the_whole_model(lively_model: FastVLM, seed: int) -> None:
    """Each token is the argmax of a full forward pass over everything before it, with no cache."""
    engine = TorchEngine(lively_model, 256)
    before, after = encode_prompt(lively_model.tokenizer, QUESTION)
    pixels = preprocess(picture(seed), 128)
    answer = list(generate_ids(engine, pixels, before, after, max_new_tokens=24))
    assert len(answer) == 24
    assert len(set(answer)) > 4, "a model that repeats itself proves little"
    tensor = pixels_to_tensor(pixels)
    for step, id_ in enumerate(answer):
        row = torch.tensor([[*before, IMAGE_TOKEN, *after, *answer[:step]]])
        with torch.inference_mode():
            logits = lively_model(row, tensor)[0, -1]
        assert int(logits.argmax()) == id_, f"step {step}"


def test_cached_logits_are_close(lively_model: FastVLM) -> None:
    engine = TorchEngine(lively_model, 64)
    rows = engine.embed(range(20))
    whole = lively_model(torch.arange(20)[None]).numpy()[0]
    engine.prefill(rows[:7])
    engine.prefill(rows[7:12])  # in pieces, as a runtime of fixed query length does
    cached = np.stack([engine.decode(rows[at : at + 1]) for at in range(12, 20)])
    check("cached", whole[12:], cached)


def test_the_answer_depends_on_the_picture_and_the_question(lively_model: FastVLM) -> None:
    def answer(seed: int, question: str) -> str:
        return "".join(lively_model.generate(picture(seed), question, 16))

    assert len({answer(0, QUESTION), answer(1, QUESTION), answer(0, "Describe the image.")}) == 3


def test_an_engine_can_be_used_again(lively_model: FastVLM) -> None:
    engine = TorchEngine(lively_model, 128)
    before, after = encode_prompt(lively_model.tokenizer, QUESTION)
    pixels = preprocess(picture(), 128)
    first = list(generate_ids(engine, pixels, before, after, max_new_tokens=8))
    assert list(generate_ids(engine, pixels, before, after, max_new_tokens=8)) == first
    assert list(generate_ids(engine, None, [3], [4], max_new_tokens=8)) != first


def test_sampling_reaches_the_loop(lively_model: FastVLM) -> None:
    def answer(**options: float) -> str:
        return "".join(lively_model.generate(picture(), QUESTION, 16, **options))

    hot = answer(temperature=3.0, seed=1)
    assert hot == answer(temperature=3.0, seed=1)
    assert hot != answer(temperature=3.0, seed=2)
    assert answer(temperature=1e-5) == answer() == answer(temperature=5.0, top_p=1e-9)


# The loop


def test_all_but_the_last_position_are_prefilled() -> None:
    engine = Recorder(likes=[5, 6, 7])
    assert list(generate_ids(engine, PIXELS, [1, 2], [8, 9], max_new_tokens=3)) == [5, 6, 7]
    assert engine.calls == [
        ("encode", (128, 128, 3)),
        ("reset",),
        ("prefill", 1, 2, -1, -1, -1, -1, 8),
        ("decode", 9),
        ("decode", 5),
        ("decode", 6),
    ]


def test_rows_that_an_engine_decodes_together() -> None:
    """The prompt's last ones go along with the last; what does not fit is prefilled."""
    for together, prefilled, decoded in ((64, [], [1, 2, -1, -1, -1, -1, 8, 9]), (3, [1, 2, -1, -1, -1], [-1, 8, 9])):
        engine = Recorder(likes=[5, 6, 7])
        engine.together = together
        timings = Timings()
        assert list(generate_ids(engine, PIXELS, [1, 2], [8, 9], max_new_tokens=3, timings=timings)) == [5, 6, 7]
        assert engine.calls[2:] == [("prefill", *prefilled), ("decode", *decoded), ("decode", 5), ("decode", 6)]
        assert (timings.prompt_positions, len(timings.decode)) == (8, 2)
    engine = Recorder()
    engine.together = 64
    list(generate_ids(engine, None, [1], [], max_new_tokens=1))
    assert engine.calls == [("reset",), ("prefill",), ("decode", 1)]


def test_image_last_and_text_alone() -> None:
    engine = Recorder()
    list(generate_ids(engine, PIXELS, [1], [], max_new_tokens=1))
    assert engine.calls[2:] == [("prefill", 1, -1, -1, -1), ("decode", -1)]
    engine = Recorder()
    list(generate_ids(engine, None, [], [8], max_new_tokens=1))
    assert engine.calls == [("reset",), ("prefill",), ("decode", 8)]


def test_stop_ids_end_the_answer_and_are_not_part_of_it() -> None:
    engine = Recorder(likes=[5, 6, 7, 8])
    assert list(generate_ids(engine, None, [1], [2], max_new_tokens=9, stop_ids=(7, 99))) == [5, 6]
    assert engine.calls[-1] == ("decode", 6)
    assert list(generate_ids(Recorder(likes=[7]), None, [1], [2], stop_ids=(7,), max_new_tokens=9)) == []


def test_stopping_early_costs_no_further_step() -> None:
    engine = Recorder(likes=[5, 6, 7])
    ids = generate_ids(engine, None, [1], [2], max_new_tokens=9)
    assert next(ids) == 5
    assert engine.calls[-1] == ("decode", 2)


# Budget


@pytest.mark.parametrize(("new", "fits"), [(64 - 8, True), (64 - 7, False)])
def test_budget_is_checked_at_the_call(new: int, fits: bool) -> None:
    engine = Recorder()
    if fits:
        assert len(list(generate_ids(engine, PIXELS, [1, 2], [8, 9], max_new_tokens=new))) == new
        return
    with pytest.raises(PromptError) as caught:
        generate_ids(engine, PIXELS, [1, 2], [8, 9], max_new_tokens=new)  # not even started
    assert [int(number) for number in re.findall(r"\d+", str(caught.value))] == [8, 57, 65, 64]
    assert str(caught.value).endswith("or take a longer one")
    assert engine.calls == []


def test_budget_counts_the_image_as_the_engine_does() -> None:
    """A tower of another stride makes another number of tokens of the same picture."""

    class Dense(Recorder):
        def tokens_at(self, side: int) -> int:
            return (side // 16) ** 2 - 1

    engine = Dense()
    with pytest.raises(PromptError, match="takes 65 positions"):
        generate_ids(engine, PIXELS, [1], [2], max_new_tokens=1)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("rows", "image", "says"),
    [
        ([[1, 2]], True, "[0] times, expected once each"),
        ([[IMAGE_TOKEN, 2, IMAGE_TOKEN]], True, "[2] times, expected once each"),
        ([[1, IMAGE_TOKEN], [1, 2]], True, "[1, 0] times, expected once each"),
        ([[1, IMAGE_TOKEN], [IMAGE_TOKEN, 1]], True, "at [1, 0], expected the same place"),
        ([[1, IMAGE_TOKEN]], False, "[1] times, expected none"),
    ],
)
def test_an_image_without_its_mark_is_named(
    lively_model: FastVLM, rows: list[list[int]], image: bool, says: str
) -> None:
    tokens = torch.zeros(len(rows), IMAGE_TOKENS, 64) if image else None
    with pytest.raises(PromptError, match=re.escape(says)):
        lively_model.embed(torch.tensor(rows), tokens)


@pytest.mark.parametrize("new", [0, -3])
def test_no_tokens_asked(new: int) -> None:
    with pytest.raises(UsageError, match=f"max_new_tokens is {new}"):
        generate_ids(Recorder(), PIXELS, [1], [2], max_new_tokens=new)


def test_nothing_to_continue() -> None:
    with pytest.raises(PromptError, match="no positions"):
        generate_ids(Recorder(), None, [], [])


def test_prompt_longer_than_the_context(lively_model: FastVLM) -> None:
    with pytest.raises(PromptError, match="of a context of 512"):
        lively_model.generate(picture(), "red circles " * 300)
    with pytest.raises(PromptError, match="of a context of 64"):
        lively_model.generate(picture(), QUESTION, 40, context=64)


def test_features_that_are_no_numbers() -> None:
    class Broken(Recorder):
        def encode_image(self, pixels: np.ndarray) -> np.ndarray:
            return np.full((IMAGE_TOKENS, 2), np.nan, np.float32)

    engine = Broken()
    with pytest.raises(ExecutionError, match=r"image features hold NaN.*: look at the engine"):
        list(generate_ids(engine, PIXELS, [1], [2], max_new_tokens=1))
    assert not any(call[0] == "decode" for call in engine.calls)


def test_logits_that_are_no_numbers() -> None:
    class Broken(Recorder):
        def decode(self, embed: np.ndarray) -> np.ndarray:
            return np.full(10, np.nan, np.float32)

    with pytest.raises(ExecutionError, match=r"logits are not numbers.*: look at the engine"):
        list(generate_ids(Broken(), None, [1], [2], max_new_tokens=1))


def test_budget_is_checked_before_the_picture_is_made_square(
    lively_model: FastVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    squared: list[int] = []
    monkeypatch.setattr("fastvlm_ref.generate.preprocess", lambda *given: squared.append(given[1]))
    engine = TorchEngine(lively_model, context=64, image_size=1024)
    with pytest.raises(PromptError, match=r"takes 2[0-9]{2} positions.*use a larger --context"):
        generate_text(engine, lively_model.tokenizer, picture(), QUESTION)
    assert squared == []


def test_one_limit_for_the_side_of_an_image(lively_model: FastVLM) -> None:
    for side in (LARGEST_SIDE + 64, 100, -64):
        with pytest.raises(UsageError, match=f"--image-size is {side}; it must be a multiple of 64 .* to 4096"):
            TorchEngine(lively_model, image_size=side)
    TorchEngine(lively_model, image_size=LARGEST_SIDE)


# Text


def test_pieces_join_to_the_decoded_ids(lively_model: FastVLM) -> None:
    tokenizer = lively_model.tokenizer
    pieces = list(lively_model.generate(picture(), QUESTION, 40))
    before, after = encode_prompt(tokenizer, QUESTION)
    stops = stop_ids(tokenizer, lively_model.config.prompt)
    pixels = preprocess(picture(), 128)
    ids = list(generate_ids(TorchEngine(lively_model, 512), pixels, before, after, max_new_tokens=40, stop_ids=stops))
    assert len(pieces) > 3
    assert all(pieces)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_cut_character_comes_out_at_the_end(lively_model: FastVLM) -> None:
    tokenizer = lively_model.tokenizer
    start = tokenizer.encode("🦙")[0]

    class Half(Recorder):
        def decode(self, embed: np.ndarray) -> np.ndarray:
            logits = np.zeros(tokenizer.size, np.float32)
            logits[start] = 1
            return logits

    assert list(generate_text(Half(), tokenizer, None, QUESTION, max_new_tokens=1)) == ["\ufffd"]


def test_paths_and_pictures_are_the_same(lively_model: FastVLM, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    expected = list(lively_model.generate(picture(), QUESTION, 8))
    assert list(lively_model.generate(path, QUESTION, 8)) == expected
    assert list(lively_model.generate(str(path), QUESTION, 8)) == expected


def test_the_image_rule_of_the_checkpoint_is_used(lively_model: FastVLM) -> None:
    seen = []

    class Watcher(Recorder):
        def encode_image(self, pixels: np.ndarray) -> np.ndarray:
            seen.append(pixels)
            return super().encode_image(pixels)

    for rule in ("pad", "crop"):
        text = generate_text(Watcher(), lively_model.tokenizer, picture(), "Hi?", image_rule=rule, max_new_tokens=1)
        "".join(text)
        assert np.array_equal(seen[-1], preprocess(picture(), 128, rule))
    assert not np.array_equal(*seen)


@pytest.mark.parametrize(
    ("image", "prompt", "options", "error"),
    [
        ("/nothing/here.png", QUESTION, {}, ImageError),
        (picture(), " ", {}, PromptError),
        (picture(), QUESTION, {"temperature": -1}, UsageError),
        (picture(), QUESTION, {"max_new_tokens": 0}, UsageError),
    ],
)
def test_bad_input_is_named_at_the_call(
    lively_model: FastVLM, image: object, prompt: str, options: dict[str, int], error: type[FastVLMError]
) -> None:
    with pytest.raises(error):
        lively_model.generate(image, prompt, **options)


def test_a_model_without_tokenizer(lively_model: FastVLM) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        FastVLM(lively_model.config).generate(picture(), QUESTION)


def test_wrong_pixels(lively_model: FastVLM) -> None:
    with pytest.raises(ExecutionError, match=r"\(64, 65, 3\); expected \(N, N, 3\) with N a multiple of 64"):
        TorchEngine(lively_model, 64).encode_image(np.zeros((64, 65, 3), np.uint8))


def test_another_image_size(lively_model: FastVLM) -> None:
    engine = TorchEngine(lively_model, 64, 192)
    assert engine.encode_image(preprocess(picture(), engine.image_size)).shape == (9, 64)
    for side in (100, -64):
        with pytest.raises(UsageError, match=f"--image-size is {side}; it must be a multiple of 64"):
            TorchEngine(lively_model, 64, side)


# Timings


def test_timings_of_every_stage(lively_model: FastVLM) -> None:
    timings = Timings()
    list(lively_model.generate(picture(), QUESTION, 5, timings=timings))
    assert min(timings.preprocess, timings.encode, timings.prefill, timings.first_token) > 0
    assert len(timings.decode) == 4
    assert min(timings.decode) > 0
    parts = (timings.preprocess, timings.encode, timings.prefill, timings.first_token)
    assert timings.time_to_first_token == pytest.approx(sum(parts))
    assert timings.tokens_per_second == pytest.approx(4 / sum(timings.decode))
    before, after = encode_prompt(lively_model.tokenizer, QUESTION)
    assert timings.prompt_positions == len(before) + IMAGE_TOKENS + len(after)


def test_speed_of_one_token_is_unknown() -> None:
    assert Timings().tokens_per_second is None
