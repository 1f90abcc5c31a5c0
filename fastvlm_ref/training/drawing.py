"""Draws a scene with Pillow and numpy: ground, shapes, text, and a little sensor noise.

Notable choices:
- the font is the one inside Pillow (Aileron), so no font file is needed and every machine draws the same letters;
- `side` scales everything: training draws at 256, the shipped pictures are drawn larger and shrunk like photos.
It does not know what is asked about the picture.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastvlm_ref.training.scenes import Ground, Scene, Shape, Text

Point = tuple[float, float]


def draw(scene: Scene, side: int = 256) -> Image.Image:
    """Returns the RGB picture of `scene`, `side` pixels wide; its height keeps the scene's proportions."""
    scale = side / 256
    height = round(scene.height * scale)
    image = Image.fromarray(_ground(scene.ground, side, height))
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _shape(pen, shape, scale)
    if scene.text is not None:
        _text(pen, scene.text, scale)
    return image


def pad_to_square(image: Image.Image) -> NDArray[np.uint8]:
    """Returns bytes (N, N, 3): black bars above and below a wide picture, as the image rule `pad` places them."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    square = np.zeros((width, width, 3), np.uint8)
    top = (width - height) // 2
    square[top : top + height] = pixels
    return square


def _ground(ground: Ground, width: int, height: int) -> NDArray[np.uint8]:
    mix = _pattern(ground, width, height)  # (height, width) in [0, 255]
    steps = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    first, second = np.array(ground.first, np.float32), np.array(ground.second, np.float32)
    palette = (first + (second - first) * steps).astype(np.uint8)  # (256, 3), all within 70 to 210
    rng = np.random.Generator(np.random.SFC64(ground.noise_seed))
    grain = rng.integers(0, 12, (height, width, 1), dtype=np.uint8)
    image = Image.fromarray(mix)
    image.putpalette(palette.tobytes())  # Pillow looks colours up several times faster than numpy
    out: NDArray[np.uint8] = np.asarray(image.convert("RGB")) + grain
    return out


def _pattern(ground: Ground, width: int, height: int) -> NDArray[np.uint8]:
    if ground.kind == "plain":
        return np.zeros((height, width), np.uint8)
    if ground.kind == "noise":
        rng = np.random.Generator(np.random.SFC64(ground.noise_seed + 1))
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    cos, sin = np.float32(math.cos(ground.angle)), np.float32(math.sin(ground.angle))
    x = np.arange(width, dtype=np.float32)[None] * np.float32(256 / width)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(256 / width)
    along = x * cos + y * sin
    if ground.kind == "gradient":
        span = along.max() - along.min()
        return np.asarray((along - along.min()) * np.float32(255 / span)).astype(np.uint8)
    half = np.float32(2 / ground.period)
    bands = (along * half + 64).astype(np.uint8)  # +64: no negative values, parity unchanged
    if ground.kind == "checks":
        bands = bands + ((y * cos - x * sin) * half + 64).astype(np.uint8)
    return np.asarray((bands & 1) * np.uint8(255), np.uint8)


def _polar(shape: Shape, scale: float, radii: tuple[float, ...], start: float) -> list[Point]:
    """Corners around the shape's centre, evenly spaced; their distances run through `radii` (in its radius)."""
    points = []
    for index, radius in enumerate(radii):
        angle = math.radians(start + shape.angle) + 2 * math.pi * index / len(radii)
        reach = shape.radius * radius * scale
        points.append((shape.x * scale + reach * math.cos(angle), shape.y * scale + reach * math.sin(angle)))
    return points


def _shape(pen: ImageDraw.ImageDraw, shape: Shape, scale: float) -> None:
    x, y, reach = shape.x * scale, shape.y * scale, shape.radius * scale
    box = (x - reach, y - reach, x + reach, y + reach)
    if shape.kind == "circle":
        pen.ellipse(box, fill=shape.rgb)
    elif shape.kind == "ring":
        pen.ellipse(box, outline=shape.rgb, width=max(2, round(reach * 0.36)))
    elif shape.kind == "square":
        pen.polygon(_polar(shape, scale, (1.2,) * 4, 45), fill=shape.rgb)
    elif shape.kind == "triangle":
        pen.polygon(_polar(shape, scale, (1.2,) * 3, -90), fill=shape.rgb)
    elif shape.kind == "star":
        pen.polygon(_polar(shape, scale, (1.2, 0.48) * 5, -90), fill=shape.rgb)
    else:  # cross: two bars
        for start in (0, 90):
            pen.polygon(_bar(shape, scale, start), fill=shape.rgb)


def _bar(shape: Shape, scale: float, start: float) -> list[Point]:
    """The corners of one bar of a cross, 2.2 radii long and 0.7 wide."""
    angle = math.radians(start + shape.angle)
    corners = []
    for along, across in ((1.1, 0.35), (1.1, -0.35), (-1.1, -0.35), (-1.1, 0.35)):
        x = along * math.cos(angle) - across * math.sin(angle)
        y = along * math.sin(angle) + across * math.cos(angle)
        corners.append(((shape.x + shape.radius * x) * scale, (shape.y + shape.radius * y) * scale))
    return corners


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow without FreeType falls back to a bitmap font
    return font


def _text(pen: ImageDraw.ImageDraw, text: Text, scale: float) -> None:
    dark, light = (20, 20, 25), (248, 248, 245)
    fill, edge = (dark, light) if text.dark else (light, dark)
    place = (text.x * scale, text.y * scale)
    font, width = _font(round(text.height * scale)), max(1, round(2 * scale))
    pen.text(place, text.text, fill, font, anchor="mm", stroke_width=width, stroke_fill=edge)
