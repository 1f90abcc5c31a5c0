"""Pictures of every mode that a file can have, each with the pixels that the written rule gives it.

Expected pixels are worked out in numpy from the values that went in; those of a lossy file are Pillow's own.
"""

from __future__ import annotations

import functools
import io
import zlib
from pathlib import Path

import numpy as np
from hostile_pictures import Pixels, chunk, equal, photo, png, saved
from ordeal import Case
from PIL import Image

from fastvlm.progress import Progress
from fastvlm_ref import image as reference


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    a = alpha[..., None].astype(int)
    return ((colour.astype(int) * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def _flat(values: Pixels) -> Pixels:
    return np.repeat(values[..., None], 3, -1).astype(np.uint8)


def _inks(data: bytes) -> tuple[bytes, Pixels, int]:
    """What is left of white behind four inks, one after the other."""
    inks = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    return data, np.rint((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8), 1


def modes(folder: Path) -> list[Case]:
    """24 (format, mode) pairs, each with the pixels that the written rule gives."""
    path = folder / "mode.bin"
    return [(name, functools.partial(equal, path, *how)) for name, how in _modes().items()]


def _modes() -> dict[str, tuple[bytes, Pixels, int]]:
    rgb = np.asarray(photo())
    rng = np.random.default_rng(3)
    alpha = rng.integers(0, 256, rgb.shape[:2], np.uint8)
    grey, deep = np.asarray(photo().convert("L")), rng.integers(0, 65536, rgb.shape[:2], np.uint16)
    scaled = _flat(np.rint(deep * 255.0 / 65535.0))
    rgba = Image.fromarray(np.dstack((rgb, alpha)), "RGBA")
    greys = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    table = photo().quantize(200)
    coloured = np.asarray(table.convert("RGB"))
    index = np.asarray(table)
    shown = over_white(coloured, np.where(index == 7, 0, 255))
    faded = over_white(coloured, np.arange(256, dtype=np.uint8)[index])
    bits = photo().convert("1")
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    clear = over_white(rgb, np.where((rgb == rgb[4, 4]).all(-1), 0, 255))
    few = photo().quantize(4)
    wide = rng.integers(0, 256, (40, 60, 3, 2), np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in wide)
    deep_colour = png(60, 40, chunk(b"IDAT", zlib.compress(lines)), depth=16)

    def lossy(picture: Image.Image, kind: str, **options: object) -> tuple[bytes, Pixels, int]:
        data = saved(picture, kind, **options)
        return data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), 0

    return {
        "png RGB": (saved(photo(), "PNG"), rgb, 0),
        "png RGBA": (saved(rgba, "PNG"), over_white(rgb, alpha), 1),
        "png L": (saved(photo().convert("L"), "PNG"), _flat(grey), 0),
        "png LA": (saved(greys, "PNG"), over_white(_flat(grey), alpha), 1),
        "png I;16": (saved(Image.fromarray(deep), "PNG"), scaled, 0),
        "png RGB of 16 bits": (deep_colour, wide[..., 0], 0),
        "png P": (saved(table, "PNG"), coloured, 0),
        "png P of 2 bits": (saved(few, "PNG", bits=2), np.asarray(few.convert("RGB")), 0),
        "png P, one place clear": (saved(table, "PNG", transparency=7), shown, 0),
        "png P, a table of alpha": (saved(table, "PNG", transparency=bytes(range(256))), faded, 1),
        "png RGB, one colour clear": (saved(photo(), "PNG", transparency=tuple(map(int, rgb[4, 4]))), clear, 0),
        "png 1": (saved(bits, "PNG"), _flat(np.asarray(bits) * 255), 0),
        "png of two frames": (saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), rgb, 0),
        "jpeg RGB": lossy(photo(), "JPEG"),
        "jpeg L": lossy(photo().convert("L"), "JPEG"),
        "jpeg CMYK": _inks(saved(photo().convert("CMYK"), "JPEG")),
        "jpeg progressive": lossy(photo(), "JPEG", progressive=True),
        "jpeg with restarts": lossy(photo(), "JPEG", restart_marker_blocks=1),
        "jpeg 4:2:2": lossy(photo(), "JPEG", subsampling=1),
        "jpeg of one pixel": lossy(photo(1, 1), "JPEG"),
        "mpo": (saved(photo(), "MPO", save_all=True, append_images=[photo(20, 10)]), lossy(photo(), "JPEG")[1], 0),
        "webp RGB": (saved(photo(), "WEBP", lossless=True), rgb, 0),
        "webp RGBA": (saved(rgba, "WEBP", lossless=True, exact=True), over_white(rgb, alpha), 1),
        "webp of two": (saved(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]), rgb, 0),
    }  # fmt: skip


def noted(folder: Path) -> list[Case]:
    """Of pictures with further frames the first is read, and that is told; of others nothing is."""
    rgb, path = np.asarray(photo()), folder / "noted.bin"
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]}
    made = {
        "png": (saved(photo(), "PNG", **frames), True),
        "png that shows another": (saved(photo(), "PNG", default_image=True, **frames), True),
        "webp": (saved(photo(), "WEBP", lossless=True, **frames), True),
        "one png": (saved(photo(), "PNG"), False),
        "one webp": (saved(photo(), "WEBP", lossless=True), False),
        "mpo": (saved(photo(), "MPO", **frames), False),
    }

    def run(data: bytes, told: bool) -> None:
        path.write_bytes(data)
        notes = Notes()
        pixels = np.asarray(reference.open_image(path, progress=notes))
        assert data[:2] == b"\xff\xd8" or np.array_equal(pixels, rgb), "not the first frame"
        assert notes.told == ["noted.bin: it has several frames; the first one is used"] * told

    return [(f"frames of {name}", functools.partial(run, *how)) for name, how in made.items()]


class Notes(Progress):
    """What a picture's reader tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)
