"""The pictures that `data/goldens/preprocess.json` speaks of, drawn by the rule that made them: waves and noise.

The reference data holds them as PNG files of 9 MB in all; three small ones travel with the tests and show, to the
byte, that the rule is right. Channel c of picture i at (x, y), floored to uint8:

    clip(127 + 120·sin(x / (9 + 5c) + i)·cos(y / (13 + 3c)) + 12·noise, 0, 255)

with noise from numpy's `Generator(PCG64([7, i])).normal`, drawn in the order of the bytes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZES = ((640, 480), (480, 640), (333, 257), (64, 64), (1536, 1024), (50, 400), (1024, 1024), (1152, 700))
NAMES = tuple(f"image_{index}.png" for index in range(len(SIZES)))


def golden_picture(name: str) -> Image.Image:
    """Returns the picture of a golden row, RGB."""
    index = NAMES.index(name)
    width, height = SIZES[index]
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (9 + 5 * channel) + index) * np.cos(y / (13 + 3 * channel)) for channel in range(3)]
    noise = np.random.Generator(np.random.PCG64([7, index])).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(127 + 120 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))
