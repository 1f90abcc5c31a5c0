"""Image inputs and outputs: PIL images and uint8 arrays, colour order, scale and bias, sizes and modes checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from mil_programs import convert
from PIL import Image

from fastvlm.errors import ExecutionError
from validation.mil import MILModel


class Channels(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([1.0, 2.0, 4.0])[None, :, None, None]


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def model(color: Any = ct.colorlayout.RGB, scale: float = 1 / 255, bias: Any = (0.0, 0.0, 0.0)) -> Any:
    return convert(
        Channels(),
        [torch.zeros(1, 3, 4, 6)],
        inputs=[ct.ImageType("image", (1, 3, 4, 6), scale=scale, bias=list(bias), color_layout=color)],
        outputs=[ct.TensorType("y")],
        compute_precision=ct.precision.FLOAT32,
    )


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_scale_bias_and_colour_order(pixels: np.ndarray, color: str) -> None:
    runtime = MILModel(model(ct.colorlayout[color], 1 / 127.5, (-1.0, -0.5, 0.25)))
    ordered = pixels if color == "RGB" else pixels[:, :, ::-1]
    want = ordered.astype(np.float32) / 127.5 + np.array([-1.0, -0.5, 0.25], np.float32)
    want = (want * np.array([1, 2, 4], np.float32)).transpose(2, 0, 1)[None]
    for given in (pixels, Image.fromarray(pixels)):
        np.testing.assert_allclose(runtime.predict({"image": given})["y"], want, atol=1e-5)


def test_wrong_images_are_named(pixels: np.ndarray) -> None:
    runtime = MILModel(model())
    for given, message in (
        (Image.fromarray(pixels).convert("L"), "mode L given, expected RGB"),
        (pixels.astype(np.float32), "float32 array given"),
        (pixels[:, :, :2], r"\[4, 6, 2\] given"),
        (pixels[:3], "image of 6x3 given, expected 6x4"),
    ):
        with pytest.raises(ExecutionError, match=message):
            runtime.predict({"image": given})


def test_image_output_is_a_picture(pixels: np.ndarray) -> None:
    package = convert(
        Doubled(),
        [torch.zeros(1, 3, 4, 6)],
        inputs=[ct.ImageType("image", (1, 3, 4, 6))],
        outputs=[ct.ImageType("y")],
        compute_precision=ct.precision.FLOAT32,
    )
    result = MILModel(package).predict({"image": pixels})["y"]
    assert isinstance(result, Image.Image)
    np.testing.assert_array_equal(np.asarray(result), np.clip(pixels.astype(int) * 2, 0, 255))


def flexible(shape: Any, edit: Callable[[Any], None] = lambda image: None) -> MILModel:
    """`Channels` for images of those sizes; edit: a change to the input's description."""
    package = convert(
        Channels(),
        [torch.zeros(1, 3, 16, 16)],
        inputs=[ct.ImageType("image", shape)],
        outputs=[ct.TensorType("y")],
        compute_precision=ct.precision.FLOAT32,
    )
    spec = package.get_spec()
    edit(spec.description.input[0].type.imageType)
    return MILModel(spec, weights=package.weights_dir)


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def taken(runtime: MILModel, width: int, height: int) -> bool:
    pixels = picture(width, height)
    try:
        got = runtime.predict({"image": pixels})["y"]
    except ExecutionError:
        return False
    np.testing.assert_array_equal(got, (pixels * np.float32([1, 2, 4])).transpose(2, 0, 1)[None])
    return True


def test_every_size_within_a_range_is_taken() -> None:
    runtime = flexible((1, 3, ct.RangeDim(8, 32, 16), ct.RangeDim(10, 40, 20)))
    sizes = [(10, 8), (40, 32), (20, 16), (13, 27), (40, 8)]
    assert [taken(runtime, *size) for size in sizes] == [True] * 5
    assert [taken(runtime, *size) for size in [(9, 8), (41, 8), (10, 7), (10, 33), (8, 10)]] == [False] * 5
    with pytest.raises(ExecutionError, match=r"image of 9x8 given, expected 10\.\.40x8\.\.32"):
        runtime.predict({"image": picture(9, 8)})


def test_a_range_may_have_no_end() -> None:
    def open_up(image: Any) -> None:
        image.imageSizeRange.heightRange.upperBound = -1

    runtime = flexible((1, 3, ct.RangeDim(8, 32, 16), 6), open_up)
    assert [taken(runtime, 6, 8), taken(runtime, 6, 300)] == [True, True]
    with pytest.raises(ExecutionError, match=r"image of 6x7 given, expected 6x8\.\."):
        runtime.predict({"image": picture(6, 7)})


def test_each_of_the_enumerated_sizes_is_taken() -> None:
    runtime = flexible(ct.EnumeratedShapes([(1, 3, 16, 16), (1, 3, 24, 20)]))
    assert [taken(runtime, 16, 16), taken(runtime, 20, 24)] == [True, True]
    assert [taken(runtime, 24, 20), taken(runtime, 16, 24)] == [False, False]
    with pytest.raises(ExecutionError, match="image of 16x24 given, expected 16x16 or 20x24"):
        runtime.predict({"image": picture(16, 24)})
