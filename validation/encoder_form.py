"""How the encoder of a build is called, and which part of the reference it is: with the projector, or the tower alone.

Stated here a second time, from what a host passes (docs/architecture.md) and from Apple's sample app
(app/FastVLM/FastVLM.swift), not from `export.contract`, so that one holds the other.
It knows neither programs nor limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastvlm.build import APPLE_APP, Build
from fastvlm_ref.image import pixels_to_tensor
from fastvlm_ref.model.fastvlm import FastVLM


@dataclass(frozen=True)
class EncoderForm:
    """One way in which an encoder is called.

    takes, gives: names of its input and its result. picture: whether it takes an RGB picture, bytes, else the
    reference's pixels, float32 (1, 3, N, N) in [0, 1]. projected: whether the projector is in it. system: the oldest
    that loads it. dtype: of its result.
    """

    takes: str
    gives: str
    picture: bool
    projected: bool
    system: str
    dtype: str

    def function(self, side: int) -> str:
        """Returns the function that takes pictures of N = `side`."""
        return f"encode_{side}" if self.picture else "main"

    @property
    def scale(self) -> float:
        """What the function multiplies its input by."""
        return 1 / 255 if self.picture else 1.0

    def inputs(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Returns what the function takes for RGB bytes (N, N, 3)."""
        return {self.takes: Image.fromarray(pixels) if self.picture else pixels_to_tensor(pixels).numpy()}

    def tokens(self, model: FastVLM, pixels: Tensor) -> Tensor:
        """Returns what the reference makes of pixels (1, 3, N, N) in [0, 1]: tokens (1, T, width)."""
        tokens: Tensor = model.encode_image(pixels) if self.projected else model.vision_encoder(pixels)
        return tokens

    def width(self, model: FastVLM) -> int:
        """Returns how many numbers a token has."""
        return model.config.text.hidden_size if self.projected else model.config.vision.features


OWN = EncoderForm("image", "imageFeatures", True, True, "iOS 18, macOS 15", "float16")
FORMS = {None: OWN, APPLE_APP: EncoderForm("images", "image_features", False, False, "iOS 16, macOS 13", "float32")}


def form_of(build: Build) -> EncoderForm:
    """Returns how the encoder of a build is called."""
    return FORMS[build.purpose]
