"""The packages themselves, executed: encoder and language model against the reference, in float32 and in fp16."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_limits import check
from PIL import Image
from small_export import CONTEXT, QUERY, SIZES

from export.encoder import EncoderGraph
from validation.host import causal_mask, pad_rows, plan_prefill, rope_tables
from validation.mil import MILModel

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


def as_pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def rounded(graph: torch.nn.Module) -> Any:
    """A copy with fp16 weights; the graph shares parameters with the reference, which must stay as it is."""
    graph = copy.deepcopy(graph)
    for parameter in graph.parameters():
        parameter.data = parameter.data.half().float()
    return graph


@pytest.mark.parametrize("side", SIZES)
def test_encoder_float32(build: Path, model: Any, side: int) -> None:
    package = MILModel(build / "VisionEncoder.mlpackage", f"encode_{side}", "fp32")
    found = package.predict({"image": Image.fromarray(picture(side))})["imageFeatures"]
    with torch.no_grad():
        wanted = rounded(EncoderGraph(model))(as_pixels(picture(side)))
    assert found.shape == (1, (side // 64) ** 2, 64)
    check("encoder_fp32", wanted, found)


@pytest.mark.parametrize("side", SIZES)
def test_encoder_fp16(build: Path, model: Any, side: int) -> None:
    package = MILModel(build / "VisionEncoder.mlpackage", f"encode_{side}", "fp16")
    found = package.predict({"image": Image.fromarray(picture(side))})["imageFeatures"]
    assert found.dtype == np.float16
    with torch.no_grad():
        check("encoder_fp16", model.encode_image(as_pixels(picture(side))), found)


class Conversation:
    """One state, driven as a host drives it."""

    def __init__(self, build: Path, precision: str, text: Any) -> None:
        decode = MILModel(build / "LanguageModel.mlpackage", None, precision)
        assert decode.function_name == "decode"
        self.functions = {"decode": decode, "prefill": decode.function("prefill")}
        self.state, self.position, self.text = decode.make_state(), 0, text

    def call(self, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        query = QUERY if name == "prefill" else 1
        cos, sin = rope_tables(self.position, query, self.text.head_dim, self.text.rope_theta)
        inputs = {
            "inputsEmbeds": pad_rows(rows, query), "ropeCos": cos, "ropeSin": sin,
            "causalMask": causal_mask(self.position, len(rows), query, CONTEXT),
            "position": np.array([self.position], np.int32),
        }  # fmt: skip
        outputs: dict[str, np.ndarray] = self.functions[name].predict(inputs, self.state)
        self.position += len(rows)
        return outputs

    def logits(self, embeds: np.ndarray, prompt: int) -> np.ndarray:
        for chunk in plan_prefill(prompt, past=0, query=QUERY, context=CONTEXT):
            self.call(chunk.function, embeds[chunk.start : chunk.start + chunk.rows])
        rows = [self.call("decode", embeds[i : i + 1])["logits"] for i in range(prompt, len(embeds))]
        return np.concatenate(rows)[:, 0]


def reference_logits(model: Any, embeds: np.ndarray, prompt: int) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.decoder.head(model.decoder(torch.from_numpy(embeds)[None]))[0, prompt:])


def embeds_of(model: Any, length: int) -> np.ndarray:
    ids = torch.arange(length) * 7 % model.config.text.vocab_size
    return np.asarray(model.decoder.embed_tokens(ids).half().float())


@pytest.mark.parametrize("prompt", [16, 21, CONTEXT - 3])
def test_language_fp16(build: Path, model: Any, prompt: int) -> None:
    embeds = embeds_of(model, min(prompt + 4, CONTEXT))
    found = Conversation(build, "fp16", model.config.text).logits(embeds, prompt)
    assert found.dtype == np.float16
    wanted = reference_logits(model, embeds, prompt)
    check("logits_fp16", wanted, found)
    assert wanted.argmax(1).tolist() == found.argmax(1).tolist()


def test_language_float32(build: Path, model: Any) -> None:
    embeds = embeds_of(model, 25)
    found = Conversation(build, "fp32", model.config.text).logits(embeds, 21)
    wanted = reference_logits(rounded(model), embeds, 21)
    check("logits_fp32", wanted, found)


def test_padding_is_invisible(build: Path, model: Any) -> None:
    """21 rows in two chunks, the second padded, give the same next logits as 16 and then five decode steps."""
    embeds = embeds_of(model, 22)
    padded = Conversation(build, "fp32", model.config.text).logits(embeds, 21)
    stepped = Conversation(build, "fp32", model.config.text).logits(embeds, 16)[-1:]
    check("padding", stepped, padded)


def test_a_wrong_position_is_seen(build: Path, model: Any) -> None:
    """The comparison can fail: keys written one place too late change the answer."""
    embeds = embeds_of(model, 22)
    talk = Conversation(build, "fp32", model.config.text)
    talk.call("prefill", embeds[:16])
    talk.position += 1
    shifted = np.concatenate([talk.call("decode", embeds[i : i + 1])["logits"] for i in range(16, 20)])[:, 0]
    check("planted_fault", reference_logits(model, embeds[:20], 16), shifted)
