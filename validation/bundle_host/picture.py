"""Photo → the N×N RGB bytes that the encoder takes; Pillow decodes and reads EXIF, the rest is numpy.

Sources: Pillow's Resample.c and AlphaComposite.c, LLaVA's expand2square, transformers' CLIPImageProcessor.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastvlm.errors import BundleError, ImageError

Pixels = NDArray[np.uint8]
BITS = 22  # of a weight behind the point: 32 − 8 of a byte − 2, since sums of weights pass 0 and 1


def open_photo(path: str | Path) -> Pixels:
    """Returns RGB (height, width, 3) of a PNG or JPEG file, upright; transparent places are laid over white."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey
                grey = (np.asarray(image).astype(np.int64)[..., None] * 255 + 32767) // 65535
                return np.repeat(grey.astype(np.uint8), 3, 2)
            rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
    except Exception as error:  # decoders raise a dozen kinds on damaged files
        raise ImageError(f"{path} is no PNG or JPEG that can be read ({' '.join(str(error).split())})") from error
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def square(pixels: Pixels, size: int, strategy: str) -> Pixels:
    """Returns (N, N, 3), N = `size`, of RGB (height, width, 3): width first, then height, each rounded to bytes.

    "pad" centres the picture on a black square; "center_crop" brings its shorter side to N and keeps the middle.
    """
    if strategy not in ("pad", "center_crop"):
        raise BundleError(f"metadata.json names the image strategy {strategy}, expected pad or center_crop")
    short, long = sorted(pixels.shape[:2])
    for _ in "width", "height":
        pixels = np.ascontiguousarray(pixels.swapaxes(0, 1))  # the axis to resize comes first
        length = len(pixels)
        side, scaled = (long, size) if strategy == "pad" else (length, size * length // short)
        pixels = resample(pixels, (side - length) // 2, side, scaled, (scaled - size) // 2, size)
    return pixels


def resample(pixels: Pixels, before: int, side: int, size: int, first: int, count: int) -> Pixels:
    """Resizes `side` rows, black but for (S, M, 3) after `before`, to `size`; returns `count` of these from `first`."""
    scale = side / size
    wide = max(scale, 1.0)  # enlarging looks at 4 places, reducing at 4 · scale
    centre = (np.arange(first, first + count) + 0.5) * scale
    low = np.maximum((centre - 2 * wide + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + 2 * wide + 0.5).astype(np.int64), side)
    places = low[:, None] + np.arange((high - low).max())
    x = np.abs((places - centre[:, None] + 0.5) * (1.0 / wide))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5  # bicubic, a = −0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0)) * (places < high[:, None])
    weights /= np.cumsum(weights, 1)[:, -1:]  # added one by one, as in C
    codes = np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights)).astype(np.int32)
    rows = np.clip(places - before, 0, len(pixels) - 1)
    total = np.full((count, *pixels.shape[1:]), 1 << (BITS - 1), np.int32)
    for row, code in zip(rows.T, (codes * (rows == places - before)).T, strict=True):  # a black row adds nothing
        total += pixels[row] * code[:, None, None]
    return np.clip(total >> BITS, 0, 255).astype(np.uint8)
