"""Powers of two between an FFN's convolutions: they change no number, and give every channel its part of eight bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_outliers import pictures
from onnx_encoder_runs import LIMITS, check, reference, run, value_of
from torch import Tensor

from export.encoder import EncoderGraph
from export.onnx import encoder as onnx_encoder
from export.onnx.encoder import EncoderForm, write_encoders
from export.onnx.encoder_int8 import BLOCK, ZERO, blocks, reads_less, writes_less
from export.onnx.smoothing import channel_powers
from export.protection import Protection
from fastvlm_ref.image import pixels_to_tensor

pytestmark = pytest.mark.usefixtures("one_thread")
FFN = "network.4.0.convffn"
LOUD = (3, 40)  # channels of the FFN above


@pytest.fixture(scope="module")
def loud(tiny_model: Any) -> Any:
    """The embedded checkpoint with two channels between 7×7 and fc1 made 256 times as large; the same network."""
    other = copy.deepcopy(tiny_model)
    ffn = other.vision_encoder.get_submodule(FFN)
    for channel in LOUD:
        ffn.conv.bn.weight.data[channel] *= 256
        ffn.conv.bn.bias.data[channel] *= 256
        ffn.fc1.weight.data[:, channel] /= 256
    return other


def powers_of(model: Any) -> dict[str, Tensor]:
    shown = [pixels_to_tensor(pixels) for pixels in pictures(256).values()]
    return channel_powers(EncoderGraph(model, Protection(safe_forms=False)), shown)


def test_loud_channels_are_divided_by_what_makes_them_loud(tiny_model: Any, loud: Any) -> None:
    plain, found = powers_of(tiny_model), powers_of(loud)
    assert plain.keys() == found.keys()
    assert len(found) == 8
    others = [channel for channel in range(64) if channel not in LOUD]
    risen = found[FFN] - plain[FFN]
    assert (risen[list(LOUD)] - risen[others].mean() >= 6.5).all()  # √(256 · 256) = 2^8, around their mean
    assert (risen[others] - risen[others].mean()).abs().max() <= 1


def test_no_number_changes(loud: Any) -> None:
    power = powers_of(loud)[FFN]
    ffn = EncoderGraph(loud, Protection(safe_forms=False)).get_submodule(FFN)
    x = torch.randn(1, 64, 16, 16)
    with torch.no_grad():
        assert torch.equal(ffn.fc1(ffn.conv(x)), reads_less(ffn.fc1, power)(writes_less(ffn.conv, power)(x)))


def test_what_a_loud_channel_costs(tiny_model: Any, loud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the powers the loud checkpoint is as good in int8 as the plain one; without them it misses the limit."""
    pixels = pictures(256)["shapes"]
    wanted = reference(tiny_model, pixels)

    def tokens(name: str) -> Any:
        (tmp_path / name).mkdir()
        write_encoders(loud, (256,), tmp_path / name, EncoderForm("int8"))
        return run(tmp_path / name / "VisionEncoder.onnx", pixels[None])

    check("tiny_int8", wanted, tokens("with"))
    zero = {name: torch.zeros_like(power) for name, power in powers_of(loud).items()}
    monkeypatch.setattr(onnx_encoder, "channel_powers", lambda *_: zero)
    assert not LIMITS["tiny_int8"].holds(value_of(LIMITS["tiny_int8"], wanted, tokens("without")))


def test_silent_channels_and_weights_have_finite_powers(tiny_model: Any) -> None:
    quiet = copy.deepcopy(tiny_model)
    ffn = quiet.vision_encoder.get_submodule(FFN)
    ffn.conv.bn.weight.data[0] = ffn.conv.bn.bias.data[0] = 0
    ffn.fc1.weight.data[:, 1] = 0
    power = powers_of(quiet)[FFN]
    assert torch.isfinite(power).all()
    assert power.abs().max() <= 10


def test_blocks_of_a_width_that_is_no_multiple() -> None:
    weight = torch.randn(5, BLOCK + 8)
    codes, scales = blocks(weight)
    assert (codes.shape, scales.shape) == ((5, 2, BLOCK), (5, 2))
    assert (codes[:, 1, 8:] == ZERO).all()
    dense = ((codes.float() - ZERO) * scales[:, :, None]).flatten(1)[:, : BLOCK + 8]
    steps = scales.repeat_interleave(BLOCK, 1)[:, : BLOCK + 8]
    assert ((dense - weight).abs() <= steps * 0.5001).all()
    assert np.isfinite(blocks(torch.zeros(2, BLOCK))[1].numpy()).all()
