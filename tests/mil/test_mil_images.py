"""Image inputs and outputs: PIL images and uint8 arrays, colour order, scale and bias, sizes and modes checked."""

from __future__ import annotations

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
