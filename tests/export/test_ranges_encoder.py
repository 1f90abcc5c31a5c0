"""The encoder's ranges are those of a plain computation; a planted spike is found under its name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.encoder import EncoderGraph
from export.ranges import side_by_side
from export.ranges.encoder import encoder_pass
from export.ranges.frames import FRAMES, Picture, hostile_frames, photos
from export.ranges.result import ALLOWED, ENCODER, FP16_LARGEST, Ranges, TensorRange
from export.ranges.watch import Tally
from fastvlm.errors import TensorError
from fastvlm.manifest import significant
from fastvlm_ref.image import open_image, pixels_to_tensor, preprocess
from fastvlm_ref.samples import shipped_samples
from fastvlm_ref.threads import one_thread

SIDES = (128, 64)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [*photos(shipped_samples(), "pad"), *hostile_frames()]


def scanned(model: Any, pictures: list[Picture], sides: tuple[int, ...] = SIDES) -> Ranges:
    tally = Tally()
    encoder_pass(EncoderGraph(model), pictures, sides, tally)
    return Ranges("", sides, (), (), 0, None, tally.tensors())


@torch.no_grad()
def test_every_convolution_is_as_hooks_see_it(model: Any, pictures: list[Picture]) -> None:
    graph = EncoderGraph(model)
    outputs: dict[str, list[tuple[str, Tensor]]] = {}
    source = ""
    for name, part in graph.named_modules():
        if isinstance(part, (nn.Conv2d, nn.GELU)):
            kind = "convolution" if isinstance(part, nn.Conv2d) else "gelu"
            key = f"{ENCODER}{name} {kind}"
            part.register_forward_hook(
                lambda _, __, out, key=key: outputs.setdefault(key, []).append((source, out.clone()))
            )
    for side in SIDES:
        for picture in pictures:
            source = f"{picture.name} at {side}"
            graph(pixels_to_tensor(picture.pixels(side)))
    found = {tensor.name: tensor for tensor in scanned(model, pictures).tensors}
    assert len(outputs) > 40
    for name, seen in outputs.items():
        peaks = [(float(out.abs().max()), source) for source, out in seen]
        small = sum(int(((out != 0) & (out.abs() < 2**-14)).sum()) for _, out in seen)
        share = small / sum(out.numel() for _, out in seen)
        largest = max(peak for peak, _ in peaks)
        worst = next(source for peak, source in peaks if peak == largest)
        assert found[name] == TensorRange(name, significant(largest), significant(share), worst)
    assert any(tensor.subnormal > 0 for tensor in found.values())


@torch.no_grad()
def test_tokens_are_the_graphs_at_the_first_side(model: Any, pictures: list[Picture]) -> None:
    tokens = encoder_pass(EncoderGraph(model), pictures, SIDES, Tally())
    graph = EncoderGraph(model)
    assert len(tokens) == len(pictures)
    for picture, found in zip(pictures, tokens, strict=True):
        assert torch.equal(found, graph(pixels_to_tensor(picture.pixels(SIDES[0]))))


def test_cores_do_not_count(model: Any, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for count in (1, 2):
        monkeypatch.setattr(side_by_side, "cores", lambda count=count: count)
        found.append(scanned(model, pictures))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["network.2.0.token_mixer", "network.8.2.conv", "projector_0"])
@torch.no_grad()
def test_a_planted_spike_is_the_first_beyond(model: Any, pictures: list[Picture], name: str) -> None:
    """2²⁴ on one channel of a convolution: what comes before stays as it was, to the last digit."""
    plain = scanned(model, pictures, (64,))
    assert plain.first_beyond(ALLOWED) is None
    spiked = copy.deepcopy(model)
    part = EncoderGraph(spiked).get_submodule(name)  # these graph modules share their weights with the model
    part.weight[3] *= 2.0**24
    part.bias[3] *= 2.0**24
    ranges = scanned(spiked, pictures, (64,))
    for limit in (ALLOWED, FP16_LARGEST):
        first = ranges.first_beyond(limit)
        assert first is not None
        assert first.name == f"{ENCODER}{name} convolution"
        assert first.peak > limit
    before = list(ranges.tensors[: ranges.tensors.index(first)])
    assert before == list(plain.tensors[: len(before)])


def test_a_model_that_gives_nan_is_named(model: Any, pictures: list[Picture]) -> None:
    broken = copy.deepcopy(model)
    broken.vision_encoder.network[4][0].convffn.fc1.weight[1, 1] = float("nan")
    with pytest.raises(TensorError, match=r"encoder\.network\.4\.0\.convffn\.fc1 convolution gives NaN"):
        scanned(broken, pictures, (64,))


def test_frames_are_what_they_are_called() -> None:
    frames = {picture.name: picture.pixels(64) for picture in hostile_frames()}
    assert list(frames) == list(FRAMES)
    assert all(frame.shape == (64, 64, 3) and frame.dtype == np.uint8 for frame in frames.values())
    assert int(frames["one bright pixel"].sum()) == 3 * 255
    assert frames["checkerboard"][0, :3, 0].tolist() == [0, 255, 0]
    assert frames["checkerboard"][1, :3, 2].tolist() == [255, 0, 255]
    assert np.unique(frames["saturated noise"]).tolist() == [0, 255]
    assert len(np.unique(frames["noise"])) == 256
    assert abs(float(frames["noise"].mean()) - 127.5) < 2
    assert frames["green"][5, 5].tolist() == [0, 255, 0]
    assert not frames["black"].any()
    assert (frames["white"] == 255).all()


def test_photos_follow_the_image_rule() -> None:
    sample = shipped_samples()[2]
    for rule in ("pad", "crop"):
        (picture,) = photos([sample], rule)
        assert picture.name == sample.name
        assert np.array_equal(picture.pixels(64), preprocess(open_image(sample.picture), 64, rule))
    assert not np.array_equal(photos([sample], "pad")[0].pixels(64), photos([sample], "crop")[0].pixels(64))
