"""Published logits: the mechanism on the embedded checkpoint, and every wrong thing that must not pass.

The "published" row is what another implementation gives: the same model cast to bfloat16, run by torch's own kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastvlm.errors import ImageError, UsageError
from fastvlm_ref import encode_prompt, load_checkpoint, preprocess
from fastvlm_ref.config import IMAGE_TOKEN, PromptConfig
from fastvlm_ref.image import pixels_to_tensor
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.synthetic.sizes import SIZES
from fastvlm_ref.tokenizer import load_tokenizer
from validation.limits import OFFICIAL
from validation.official import check
from validation.official.check import OfficialCheck, check_official, compare
from validation.official.logits import LastLogits, last_logits
from validation.official.published import PROMPT, PUBLISHED, QUESTION, Published, find_published
from validation.rounding import to_bfloat16

SIDE = 256
TEXT_IDS = 26  # of the prompt, in the embedded vocabulary


@pytest.fixture(scope="module")
def model() -> FastVLM:
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def picture(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn scene of the size of the real picture: cropped and padded it is not the same."""
    path = tmp_path_factory.mktemp("official") / "scene.png"
    with Image.open(tiny / "pictures" / "wide.png") as scene:
        scene.convert("RGB").resize((640, 480), Image.Resampling.BICUBIC).save(path)
    return path


def in_bfloat16(model: FastVLM, picture: Path) -> Tensor:
    """Logits (S, V) of the model cast to bfloat16, as transformers' script runs it."""
    with Image.open(picture) as image:
        pixels = pixels_to_tensor(preprocess(image, SIDE, "crop")).bfloat16()
    before, after = encode_prompt(model.tokenizer, QUESTION, PROMPT)
    tokenizer, model.tokenizer = model.tokenizer, None
    cast = copy.deepcopy(model).to(torch.bfloat16)
    model.tokenizer = tokenizer
    with torch.no_grad():
        return cast(torch.tensor([[*before, IMAGE_TOKEN, *after]]), pixels)[0].float()


@pytest.fixture(scope="module")
def published(model: FastVLM, picture: Path) -> Published:
    logits = in_bfloat16(model, picture)
    return Published("tiny", 4, 192, (576,), tuple(logits[-1, :3].tolist()), len(logits), SIDE)


@pytest.fixture
def known(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded checkpoint is one that logits were published for."""
    monkeypatch.setattr(check, "PUBLISHED", [published])


Asked = Callable[[], OfficialCheck]


@pytest.fixture
def asked(model: FastVLM, picture: Path, known: None, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Runs the check on the embedded checkpoint, whose model a test may have damaged before."""
    monkeypatch.setattr(check, "load_checkpoint", lambda *_, **__: model)
    return lambda: check_official("tiny", picture)


def missed(found: OfficialCheck) -> set[str]:
    return {row.limit.metric for row in found.rows if not row.passed}


def test_float32_passes_against_bfloat16(picture: Path, published: Published, known: None) -> None:
    found = check_official("tiny", picture)
    assert found.passed
    assert found.positions == published.positions == (SIDE // 64) ** 2 + TEXT_IDS
    values = {row.limit.metric: row.value for row in found.rows}
    assert 0 < values["logit_error"] < 0.03
    assert 0.001 < values["bf16_cost"] < 0.02
    assert found.as_json()["verdict"] == "passed"
    assert [row["token"] for row in found.as_json()["logits"]] == [0, 1, 2]  # type: ignore[attr-defined]


def test_bfloat16_passes_against_float32(model: FastVLM, picture: Path, published: Published, known: None) -> None:
    """The other way round: had the published logits been exact, a run in bfloat16 would be as good."""
    exact = check_official("tiny", picture)
    true = replace(published, logits=tuple(row.here for row in exact.logits))
    cast = in_bfloat16(model, picture)[-1].numpy()
    assert compare(true, LastLogits(published.positions, cast, cast)).passed
    assert compare(true, LastLogits(published.positions, cast + 1, cast)).passed is False


def test_the_pass_is_that_of_the_model_and_streaming_changes_nothing(model: FastVLM, picture: Path) -> None:
    with Image.open(picture) as image:
        pixels = pixels_to_tensor(preprocess(image, SIDE, "crop"))
    before, after = ids = encode_prompt(model.tokenizer, QUESTION, PROMPT)
    with torch.no_grad():
        whole = model(torch.tensor([[*before, IMAGE_TOKEN, *after]]), pixels)[0]
    found, streamed = last_logits(model, pixels, ids), last_logits(load_checkpoint("tiny", stream=True), pixels, ids)
    assert found.positions == len(whole)
    np.testing.assert_allclose(found.exact, whole[-1].numpy(), atol=1e-4)
    assert np.array_equal(found.exact, streamed.exact)
    assert np.array_equal(found.rounded, streamed.rounded)
    assert torch.equal(to_bfloat16(torch.from_numpy(found.rounded)), torch.from_numpy(found.rounded))


def pad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "IMAGE_RULE", "pad")


def bgr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "preprocess", lambda *words: preprocess(*words)[..., ::-1])


def mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "preprocess", lambda *words: preprocess(*words)[:, ::-1])


def other_system_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROMPT", PromptConfig("qwen_2", "You are a hopeful assistant."))


def text_before_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(*words: Any) -> tuple[list[int], list[int]]:
        before, after = encode_prompt(*words)
        return before + after[:5], after[5:]

    monkeypatch.setattr(check, "encode_prompt", turned)


@pytest.mark.parametrize("fault", [pad, bgr, mirrored, other_system_text, text_before_the_image])
def test_what_is_fed_otherwise_is_found(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    assert "logit_error" in missed(asked())


@pytest.mark.parametrize("prompt", [PromptConfig("plain"), PromptConfig("qwen_2", ""), PromptConfig("qwen_2", "Hi.")])
def test_another_conversation_has_other_positions(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, prompt: PromptConfig
) -> None:
    monkeypatch.setattr(check, "PROMPT", prompt)
    assert "differing_positions" in missed(asked())


@pytest.mark.parametrize("index", range(4))
def test_a_dropped_layer_is_found(asked: Asked, model: FastVLM, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    kept = [layer for at, layer in enumerate(model.decoder.layers) if at != index]
    monkeypatch.setitem(model.decoder._modules, "layers", nn.ModuleList(kept))
    assert "logit_error" in missed(asked())


def test_wrong_angles_are_found(asked: Asked, model: FastVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.decoder, "config", replace(model.decoder.config, rope_theta=1e4))
    assert "logit_error" in missed(asked())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_never_passes(published: Published, value: float) -> None:
    row = np.linspace(-3, 3, 576, dtype=np.float32)
    row[:3] = published.logits
    bad = row.copy()
    bad[1] = value
    good = compare(published, LastLogits(published.positions, row, row))
    assert good.passed
    with np.errstate(invalid="ignore"):
        found = compare(published, LastLogits(published.positions, bad, bad))
    assert missed(found) == {"logit_error", "bf16_cost"}
    assert found.as_json()["logits"][1]["here"] == str(value)  # type: ignore[index]


def test_logits_without_spread_never_pass(published: Published) -> None:
    flat = np.zeros(576, np.float32)
    assert missed(compare(published, LastLogits(published.positions, flat, flat))) == {"logit_error", "bf16_cost"}


def test_a_rounding_that_hides_faults_is_told(published: Published) -> None:
    row = np.linspace(-3, 3, 576, dtype=np.float32)
    row[:3] = published.logits
    noise = np.random.default_rng(0).standard_normal(576).astype(np.float32)
    coarse = row + noise * row.std() * OFFICIAL["official.bf16_cost"].limit * 1.5
    assert missed(compare(published, LastLogits(published.positions, row, coarse))) == {"bf16_cost"}


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
@pytest.mark.parametrize("layout", ["llava", "hf"])
def test_the_official_sizes_are_recognised_in_both_layouts(row: Published, layout: str) -> None:
    size = SIZES[row.name.lower()]
    text = replace(size.text, vocab_size=size.rows(layout))
    assert find_published(text, "x", PUBLISHED) is row
    assert all(not other.is_of(text) for other in PUBLISHED if other is not row)
    with pytest.raises(UsageError, match=r"for x \(\d+ layers, width \d+, 7 rows\); known are 0\.5B: .*; 7B: 28"):
        find_published(replace(text, vocab_size=7), "x", PUBLISHED)


def test_published_logits_are_bfloat16() -> None:
    """Given with four decimals: 3.8281 is 3.828125."""
    for row in PUBLISHED:
        near = torch.tensor(row.logits)
        assert (to_bfloat16(near) - near).abs().max() < 1e-4


def test_the_prompt_has_the_published_number_of_positions(data: Path) -> None:
    """Qwen2's tokenizer, qwen_2 with its own system text: 14 ids before the image, 10 after it."""
    before, after = encode_prompt(load_tokenizer(data / "qwen2-cut", 151_936), QUESTION, PROMPT)
    assert (len(before), len(after)) == (14, 10)
    assert all(len(before) + (row.image_size // 64) ** 2 + len(after) == row.positions == 280 for row in PUBLISHED)


def test_a_size_that_nobody_published(picture: Path) -> None:
    with pytest.raises(UsageError, match=r"no logits were published for tiny \(4 layers, width 192, 576 rows\)"):
        check_official("tiny", picture)


def test_a_picture_of_another_size(tiny: Path) -> None:
    wrong = tiny / "pictures" / "wide.png"
    with pytest.raises(ImageError, match=r"wide\.png is 256×171 pixels, expected 640×480: .*000000039769\.jpg"):
        check_official("tiny", wrong)


def test_a_build_is_told_before_anything_is_read(
    exported_tiny: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "open_checkpoint", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UsageError, match="is a build, expected a checkpoint"):
        check_official(exported_tiny, picture)
