"""Photo → the encoder's N×N RGB bytes, those of Pillow's Resample.c and AlphaComposite.c and of CLIPImageProcessor."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastvlm.errors import BundleError, ImageError
from fastvlm.paths import open_followed
from fastvlm.picture_files import eight_bits, for_decoder, load_whole

Pixels = NDArray[np.uint8]
KINDS, PIXELS, SIDE = ("PNG", "JPEG"), 50_000_000, 30_000  # by the header, before a byte is decoded
STRIP = 1_000_000  # pixels that are flattened at a time
BITS = 22  # of a weight behind the point: 32 − 8 of a byte − 2, since sums of weights pass 0 and 1


def open_photo(path: str | Path) -> Pixels:
    """Returns RGB (height, width, 3) of a PNG or JPEG file, upright; transparent places are laid over white."""
    try:
        with warnings.catch_warnings(action="ignore"), open_followed(path) as data:
            image: Image.Image = Image.open(for_decoder(data)[0], formats=KINDS)
            if image.width * image.height > PIXELS or max(image.size) > SIDE:
                raise ValueError(f"it is {image.width} × {image.height}")
            load_whole(image, data, Image._getdecoder)
            ImageOps.exif_transpose(image, in_place=True)  # a copy takes as much again
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, STRIP // image.width)  # all at once take a gigabyte
        for top in range(0, image.height, rows):
            strip: Image.Image = image.crop((0, top, image.width, min(top + rows, image.height)))
            strip = eight_bits(strip) if strip.mode.startswith("I") else strip
            rgba = np.asarray(strip.convert("RGBA")).astype(np.uint16)
            colour, alpha = rgba[..., :3], rgba[..., 3:]
            pixels[top : top + rows] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
        return pixels
    except MemoryError:
        raise  # tells nothing of the file
    except Exception as error:  # decoders raise a dozen kinds on damaged files
        said = f"at most {PIXELS:,} pixels, {SIDE:,} a side ({' '.join(str(error).partition(' <')[0].split())})"
        raise ImageError(f"{path} is no PNG or JPEG that can be read, {said}") from error


def square(pixels: Pixels, size: int, strategy: str) -> Pixels:
    """Returns (N, N, 3), N = `size`, of RGB (height, width, 3) in the middle of black, or cut at its longer side."""
    if strategy not in ("pad", "center_crop"):
        raise BundleError(f"metadata.json names the image strategy {strategy!r:.60}, expected pad or center_crop")
    short, long = sorted(pixels.shape[:2])
    for _ in "width", "height":
        length = len(pixels := np.ascontiguousarray(pixels.swapaxes(0, 1)))  # the axis to resize comes first
        side, scaled = (long, size) if strategy == "pad" else (length, size * length // short)
        pixels = resample(pixels, (side - length) // 2, side, scaled, (scaled - size) // 2, size)
    return pixels


def resample(pixels: Pixels, before: int, side: int, size: int, first: int, count: int) -> Pixels:
    """Resizes `side` rows, black but for (S, M, 3) after `before`, to `size`; returns `count` of these from `first`."""
    scale = side / size
    wide = max(scale, 1.0)  # enlarging looks at 4 places, reducing at 4 · scale
    centre = (np.arange(first, first + count) + 0.5) * scale
    low, high = (np.clip((centre + way * wide + 0.5).astype(np.int64), 0, side) for way in (-2, 2))
    places = low[:, None] + np.arange((high - low).max())
    x = np.abs((places - centre[:, None] + 0.5) * (1.0 / wide))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5  # bicubic, a = −0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0)) * (places < high[:, None])
    weights /= np.cumsum(weights, 1)[:, -1:]  # added one by one, as in C
    codes = np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights)).astype(np.int32)
    rows = np.clip(places - before, 0, len(pixels) - 1)
    codes *= rows == places - before  # a black row adds nothing
    sums = ((pixels[row] * code[:, None, None]).sum(0, np.int32) for row, code in zip(rows, codes, strict=True))
    return np.stack([np.clip((total + (1 << (BITS - 1))) >> BITS, 0, 255).astype(np.uint8) for total in sums])
