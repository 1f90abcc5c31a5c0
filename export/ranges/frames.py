"""What the encoder is shown: photos by the checkpoint's image rule, and hostile frames that no photo comes near.

Noise comes from PCG64's raw bits, which numpy promises to keep, so that a frame is the same bytes everywhere.
It does not know the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm.hashes import sha256_file
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.samples import DEFAULT_PROMPT, Sample

Pixels = NDArray[np.uint8]  # (N, N, 3)


@dataclass(frozen=True)
class Picture:
    """One picture: its name, the question that goes along, and its pixels (N, N, 3) at a side N."""

    name: str
    prompt: str
    pixels: Callable[[int], Pixels]


def photos(samples: Sequence[Sample], rule: str, progress: Progress = SILENT) -> list[Picture]:
    """Returns the pictures of `samples`, read when their pixels are asked for; ImageError then for what is none."""

    def picture(sample: Sample) -> Picture:
        return Picture(
            sample.name, sample.prompt,
            lambda side: preprocess(open_image(sample.picture, progress=progress), side, rule),
        )  # fmt: skip

    return [picture(sample) for sample in samples]


def hostile_frames() -> list[Picture]:
    """Returns the frames of FRAMES, with the default prompt."""
    return [Picture(name, DEFAULT_PROMPT, make) for name, make in FRAMES.items()]


def pictures_hash(samples: Sequence[Sample]) -> str:
    """Returns one hash of the bytes of all pictures, in any order."""
    hashes = sorted(sha256_file(sample.picture) for sample in samples)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _noise(side: int) -> Pixels:
    """Every value alike likely, each channel of each pixel by itself."""
    count = side * side * 3
    raw = np.random.PCG64(0).random_raw(math.ceil(count / 8))
    return np.asarray(raw, "<u8").view(np.uint8)[:count].reshape(side, side, 3).copy()


def _saturated_noise(side: int) -> Pixels:
    """0 or 255, each channel of each pixel by itself."""
    return np.where(_noise(side) < 128, 0, 255).astype(np.uint8)


def _plain(*colour: int) -> Callable[[int], Pixels]:
    return lambda side: np.full((side, side, 3), colour, np.uint8)


def _checkerboard(side: int) -> Pixels:
    rows, columns = np.indices((side, side))
    return np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _one_pixel(side: int) -> Pixels:
    frame = np.zeros((side, side, 3), np.uint8)
    frame[side // 2, side // 2] = 255
    return frame


FRAMES: Mapping[str, Callable[[int], Pixels]] = {
    "noise": _noise,
    "saturated noise": _saturated_noise,
    "white": _plain(255, 255, 255),
    "red": _plain(255, 0, 0),
    "green": _plain(0, 255, 0),
    "blue": _plain(0, 0, 255),
    "checkerboard": _checkerboard,
    "one bright pixel": _one_pixel,
    "black": _plain(0, 0, 0),
}
