"""The host's pictures: numpy's bytes are Pillow's for every size, and photos become what the reference makes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastvlm.errors import BundleError, ImageError
from fastvlm_ref.image import MAX_PIXELS, MAX_SIDE, open_image, preprocess
from validation.bundle_host.picture import open_photo, square

RULES = {"pad": "pad", "center_crop": "crop"}
SIDES = st.one_of(st.integers(1, 12), st.integers(1, 400))


def noise(width: int, height: int, contrast: bool = False) -> np.ndarray:
    """Pixels (height, width, 3): every value, or black and white alone, which overshoot."""
    drawn = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return np.where(drawn > 127, np.uint8(255), np.uint8(0)) if contrast else drawn


@settings(max_examples=200)
@given(width=SIDES, height=SIDES, size=st.integers(1, 160), strategy=st.sampled_from(sorted(RULES)), flag=st.booleans())
def test_the_bytes_are_the_reference_s(width: int, height: int, size: int, strategy: str, flag: bool) -> None:
    assume(strategy == "pad" or size * max(width, height) // min(width, height) <= MAX_SIDE)  # it makes no more
    pixels = noise(width, height, flag)
    made = square(pixels, size, strategy)
    assert np.array_equal(made, preprocess(Image.fromarray(pixels), size, RULES[strategy]))


@pytest.mark.parametrize("strategy", sorted(RULES))
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1, 1, 64),
        (1, 2000, 33),
        (2000, 1, 33),
        (641, 480, 256),
        (480, 641, 256),
        (150, 100, 1152),
        (64, 64, 64),
        (3, 2, 1),
    ],
)
def test_odd_shapes(width: int, height: int, size: int, strategy: str) -> None:
    """One pixel, a line, enlarging, the very size; a crop of a line would be 2000 times as long and is never made."""
    pixels = noise(width, height, contrast=True)
    if strategy == "center_crop" and 1 in (width, height) and width != height:  # more than the reference would make
        enlarged = Image.fromarray(pixels).resize(
            (size, 2000 * size)[:: 1 if height > width else -1], Image.Resampling.BICUBIC
        )
        left, top = (enlarged.width - size) // 2, (enlarged.height - size) // 2
        expected = np.asarray(enlarged.crop((left, top, left + size, top + size)))
    else:
        expected = preprocess(Image.fromarray(pixels), size, RULES[strategy])
    assert np.array_equal(square(pixels, size, strategy), expected)


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(BundleError, match="image strategy 'stretch', expected pad or center_crop"):
        square(noise(2, 2), 2, "stretch")


# Files


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(mode: str) -> Image.Image:
    """A picture of any mode with every kind of value, transparent ones among them."""
    drawn = np.random.default_rng(1).integers(0, 256, (9, 7, 4), np.uint8)
    drawn[:2, :, 3], drawn[2:4, :, 3] = 0, 255
    return Image.fromarray(drawn, "RGBA").convert(mode)


def grey16() -> Image.Image:
    return Image.fromarray(np.arange(0, 65536, 919, np.uint16)[:63].reshape(9, 7))


def palette() -> Image.Image:
    image = colours("RGB").quantize(8)
    image.info["transparency"] = 2
    return image


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_photos_are_turned_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "photo"
    file.write_bytes(saved(Image.fromarray(noise(5, 9)), kind, exif=exif))
    assert np.array_equal(open_photo(file), np.asarray(open_image(file)))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (colours("RGBA"), "PNG"), (colours("LA"), "PNG"), (colours("L"), "PNG"), (colours("1"), "PNG"),
        (colours("P"), "PNG"), (palette(), "PNG"), (grey16(), "PNG"), (colours("CMYK"), "JPEG"), (colours("L"), "JPEG"),
    ],
)  # fmt: skip
def test_every_kind_of_file_becomes_the_same_rgb(tmp_path: Path, image: Image.Image, kind: str) -> None:
    file = tmp_path / "photo"
    file.write_bytes(saved(image, kind))
    made = open_photo(file)
    assert made.dtype == np.uint8
    assert np.array_equal(made, np.asarray(open_image(file)))


def test_every_shade_over_white_is_pillow_s(tmp_path: Path) -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack((colour, colour, colour, alpha), -1).astype(np.uint8)
    file = tmp_path / "shades.png"
    file.write_bytes(saved(Image.fromarray(rgba, "RGBA"), "PNG"))
    white = Image.new("RGBA", (256, 256), "white")
    expected = Image.alpha_composite(white, Image.fromarray(rgba, "RGBA")).convert("RGB")
    assert np.array_equal(open_photo(file), np.asarray(expected))


@pytest.mark.parametrize(
    "content",
    [b"", b"text", saved(colours("RGB"), "PNG")[:90], saved(colours("RGB"), "BMP"), saved(colours("RGB"), "GIF")],
)
def test_what_is_no_whole_png_or_jpeg_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(content)
    with pytest.raises(
        ImageError,
        match=r"photo.png is no PNG or JPEG that can be read, at most 50,000,000 pixels, 30,000 a side \(.+\)$",
    ):
        open_photo(file)


def sized(width: int, height: int) -> bytes:
    """A PNG file that says it has these sides; decoded it would be cut short."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (1, 20_000_000, "1 × 20000000"), (30_001, 1, "30001 × 1"), (12_000, 12_000, "12000 × 12000"),
        (10_000, 5_001, "10000 × 5001"), (20_000, 20_000, "400000000 pixels"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_by_its_header(tmp_path: Path, width: int, height: int, said: str) -> None:
    """As the reference does: the last is refused by Pillow itself, which warns of the one before."""
    file = tmp_path / "photo.png"
    file.write_bytes(sized(width, height))
    with pytest.raises(ImageError, match=rf"at most {MAX_PIXELS:,} pixels, {MAX_SIDE:,} a side \(.*{said}"):
        open_photo(file)
    with pytest.raises(ImageError):
        open_image(file)


@pytest.mark.parametrize("strategy", sorted(RULES))
@pytest.mark.parametrize(("width", "height"), [(3000, 800), (800, 3000), (30_000, 80)])
def test_a_large_photo_takes_a_few_times_its_bytes(tmp_path: Path, width: int, height: int, strategy: str) -> None:
    """Transparent places too, which are laid over white in 16 bits; a square of black is never made."""
    file = tmp_path / "photo.png"
    Image.new("RGBA", (width, height), (9, 8, 7, 6)).save(file)
    tracemalloc.start()
    made = square(open_photo(file), 512, strategy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.shape == (512, 512, 3)
    assert peak < 5 * 4 * width * height


WHOLE = saved(colours("RGB"), "PNG")


@pytest.mark.parametrize(
    "content",
    [WHOLE[:-12], WHOLE[:-6] + b"X" + WHOLE[-5:], WHOLE[:-20] + bytes([WHOLE[-20] ^ 1]) + WHOLE[-19:]],
    ids=["no end", "end of another name", "pixels with another checksum"],
)
def test_a_png_without_its_end_is_refused(tmp_path: Path, content: bytes) -> None:
    """By the reference as well; every row of pixels is there."""
    file = tmp_path / "photo.png"
    file.write_bytes(content)
    with pytest.raises(ImageError):
        open_image(file)
    with pytest.raises(ImageError, match=r"photo.png is no PNG or JPEG that can be read"):
        open_photo(file)


def test_a_photo_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png is no PNG"):
        open_photo(tmp_path / "nothing.png")


# Planted faults

FAULTS = {
    "no antialias": ("wide = max(scale, 1.0)", "wide = 1.0"),
    "half a pixel off": (" + 0.5) * scale", ") * scale"),
    "another bicubic": ("* -0.5  # bicubic", "* -0.75  # bicubic"),
    "cut, not rounded": ("1 << (BITS - 1)", "0"),
    "edge repeated, not black": ("codes *= rows == places - before", "pass"),
    "padded at the end": ("(side - length) // 2", "0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_resampler_that_is_nearly_right_makes_other_bytes(fault: str, root: Path) -> None:
    source = (root / "validation" / "bundle_host" / "picture.py").read_text("utf-8")
    right, wrong = FAULTS[fault]
    assert source.count(right) == 1
    scope: dict[str, Any] = {"__name__": "faulty"}
    exec(compile(source.replace(right, wrong), fault, "exec"), scope)
    pixels = noise(301, 200)
    assert not np.array_equal(scope["square"](pixels, 128, "pad"), preprocess(Image.fromarray(pixels), 128))


def test_height_before_width_makes_other_bytes() -> None:
    pixels = noise(301, 200)
    assert not np.array_equal(square(pixels, 128, "pad"), square(pixels.swapaxes(0, 1), 128, "pad").swapaxes(0, 1))
