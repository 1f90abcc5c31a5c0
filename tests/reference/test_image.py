"""Pictures: one test per rule and one per way that a file can be wrong."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageFile

from fastvlm.errors import FastVLMError, ImageError, UsageError
from fastvlm.progress import Progress
from fastvlm_ref import image as image_module
from fastvlm_ref.image import open_image, pixels_to_tensor, preprocess

WAYS = [
    *((kind, {}) for kind in ("PNG", "JPEG", "WEBP")),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"restart_marker_rows": 1}),
    ("WEBP", {"lossless": True}),
]
OTHERS = {"GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF", "JPEG2000": "JPEG 2000", "AVIF": "AVIF", "ICO": "ICO"}


def photo(width: int = 61, height: int = 37, seed: int = 0) -> Image.Image:
    """Smooth colours, noise and text: nothing in it is symmetric."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 128 + 100 * np.sin(x / 5 + y / 3)], -1)
    picture = Image.fromarray(np.clip(base + rng.normal(0, 20, base.shape), 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text((3, 3), "R7", fill="white")
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(tmp_path: Path, data: bytes, name: str = "picture.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def expand2square(picture: Image.Image, size: int) -> np.ndarray:
    """LLaVA's rule, written naively: the whole square, then one resize."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


# The two rules


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 96), strip=st.integers(1, 4000))
def test_pad_in_strips_is_expand2square(width: int, height: int, size: int, strip: int) -> None:
    picture = photo(width, height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_module, "STRIP_PIXELS", strip)
        assert np.array_equal(preprocess(picture, size), expand2square(picture, size))


@pytest.mark.parametrize(("width", "height"), [(151, 97), (97, 151), (64, 64), (300, 41), (128, 128), (40, 39)])
def test_crop_is_the_hugging_face_processor(width: int, height: int) -> None:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    processor = clip.CLIPImageProcessorPil(**sizes, do_rescale=False, do_normalize=False, resample=3)
    picture = photo(width, height)
    theirs = processor(picture, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(preprocess(picture, 64, "crop"), theirs.transpose(1, 2, 0))


@pytest.mark.parametrize(("width", "height"), [(100, 287), (40, 130), (17, 109)])
def test_crop_resizes_the_width_first_whatever_pillow_does(width: int, height: int) -> None:
    """Pillow 13 turns the order round for these tall pictures: one call gives other bytes than two."""
    picture, bicubic, scaled = photo(width, height), Image.Resampling.BICUBIC, 79 * height // width
    top = (scaled - 79) // 2
    both = picture.resize((79, height), bicubic).resize((79, scaled), bicubic).crop((0, top, 79, top + 79))
    assert np.array_equal(preprocess(picture, 79, "crop"), np.asarray(both))


def test_crop_takes_the_centre() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste((0, 0, 255), (100, 0, 200, 100))
    assert np.array_equal(preprocess(picture, 100, "crop"), np.full((100, 100, 3), (0, 0, 255)))


def test_long_picture() -> None:
    picture = photo(40, 900)
    assert np.array_equal(preprocess(picture, 64), expand2square(picture, 64))


def test_unknown_rule_and_size() -> None:
    with pytest.raises(UsageError, match=r"'stretch' is unknown; known are pad, crop"):
        preprocess(photo(), 64, "stretch")
    with pytest.raises(UsageError, match="image size is 0"):
        preprocess(photo(), 0)


def test_pixels_to_tensor() -> None:
    pixels = preprocess(photo(), 64)
    tensor = pixels_to_tensor(pixels)
    assert tuple(tensor.shape) == (1, 3, 64, 64)
    assert np.array_equal(tensor[0, 1].numpy(), pixels[:, :, 1].astype(np.float32) / np.float32(255))


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_upright_once(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = photo()
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the transposition that EXIF undoes
    turned = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    path = stored(tmp_path, encoded(turned, kind, exif=exif, **options))
    opened = open_image(path)
    assert np.array_equal(np.asarray(opened), np.asarray(upright))
    expected = preprocess(upright, 64)
    assert np.array_equal(preprocess(opened, 64), expected), "an opened picture is turned again"
    with Image.open(path) as raw:
        assert np.array_equal(preprocess(raw, 64), expected), "a picture from elsewhere is not turned"


def test_damaged_exif_is_read_as_upright_pixels(tmp_path: Path) -> None:
    path = stored(tmp_path, encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    assert open_image(path).size == photo().size


def test_damaged_exif_is_an_image_error_or_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "maker"
    whole = exif.tobytes()
    rng = np.random.default_rng(2)
    notes = Notes()
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(6, len(whole), 3):
            damaged[at] = rng.integers(256)
        path = stored(tmp_path, encoded(photo(), "JPEG", exif=bytes(damaged)))
        assert outcome(lambda: open_image(path, progress=notes)) in ("fine", "named")  # noqa: B023 called at once
        with warnings.catch_warnings(action="ignore"), Image.open(path) as raw:
            assert outcome(lambda: preprocess(raw, 8)) in ("fine", "named")
    assert any(note.startswith("picture.bin: Corrupt EXIF data.") for note in notes.lines)


# Modes


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (4, 1), (10, 20, 30, 255))
    layer.putpixel((1, 0), (10, 20, 30, 0))
    layer.putpixel((2, 0), (0, 0, 0, 128))
    seen = np.asarray(open_image(stored(tmp_path, encoded(layer, "PNG"))))[0].tolist()
    assert seen == [[10, 20, 30], [255, 255, 255], [127, 127, 127], [10, 20, 30]]


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_other_alpha_modes(mode: str) -> None:
    layer = Image.new("L", (2, 1), 40).convert(mode)
    layer.putpixel((1, 0), (40, 0))
    assert np.asarray(image_module.to_rgb(layer))[0].tolist() == [[40, 40, 40], [255, 255, 255]]


def test_palette_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 200, 0])
    picture.putpixel((1, 0), 1)
    seen = np.asarray(open_image(stored(tmp_path, encoded(picture, "PNG", transparency=1))))[0].tolist()
    assert seen == [[200, 0, 0], [255, 255, 255]]


def test_grey_of_16_bits_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 255, 256, 32767, 32768, 65406, 65407, 65535]], np.uint16)
    path = stored(tmp_path, encoded(Image.fromarray(values), "PNG"))
    seen = np.asarray(open_image(path))[0]
    assert seen[:, 0].tolist() == np.rint(values[0] * 255.0 / 65535.0).astype(int).tolist()
    assert (seen == seen[:, :1]).all()


def test_big_endian_grey(tmp_path: Path) -> None:
    picture = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65278))
    assert np.asarray(image_module.to_rgb(picture))[0, :, 0].tolist() == [1, 254]


def test_grey_beyond_16_bits_and_floats_are_refused() -> None:
    with pytest.raises(ImageError, match="from -5 to 70000; expected 0 to 65535"):
        preprocess(Image.fromarray(np.array([[-5, 70000]], np.int32)), 64)
    with pytest.raises(ImageError, match="float"):
        preprocess(Image.fromarray(np.ones((4, 4), np.float32)), 64)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_pillow_modes(mode: str) -> None:
    picture = photo().convert(mode)
    made = image_module.to_rgb(picture)
    assert made.mode == "RGB"
    assert np.array_equal(np.asarray(made), np.asarray(picture.convert("RGB")))


def test_a_mode_without_conversion_is_named() -> None:
    with pytest.raises(ImageError, match="mode La does not convert"):
        preprocess(Image.new("La", (4, 4)), 64)


def test_animation_gives_its_first_frame_and_a_note(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    moving = encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    notes = Notes()
    assert open_image(stored(tmp_path, moving, "moving.webp"), progress=notes).getpixel((4, 4)) == (255, 0, 0)
    assert notes.lines == ["moving.webp: it has several frames; the first one is used"]


def test_still_pictures_and_phone_previews_give_no_note(tmp_path: Path) -> None:
    notes = Notes()
    open_image(stored(tmp_path, encoded(photo(), "PNG")), progress=notes)
    preview = encoded(photo(), "MPO", save_all=True, append_images=[photo(20, 10)])
    assert open_image(stored(tmp_path, preview), progress=notes).size == photo().size
    assert notes.lines == []


# Files that are wrong


def outcome(act: Callable[[], object]) -> str:
    """Returns "fine", or "named" for an ImageError of one line; anything else comes through."""
    try:
        act()
        return "fine"
    except ImageError as error:
        return "named" if "\n" not in str(error) else str(error)


def refused(path: Path, **options: int) -> str:
    with pytest.raises(FastVLMError) as caught:
        open_image(path, **options)
    assert type(caught.value) is ImageError
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=["-".join((kind, *options)) for kind, options in WAYS])
def test_truncated(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    data = encoded(photo(), kind, **options)
    path = stored(tmp_path, data)
    assert open_image(path).size == photo().size
    trailer = {"PNG": 4}.get(kind, 0)  # a last checksum: no pixels
    for length in {*range(0, 40, 3), *range(40, len(data) - trailer, max(1, len(data) // 25)), len(data) - trailer - 1}:
        path.write_bytes(data[:length])
        refused(path)


def test_cut_short_says_so(tmp_path: Path) -> None:
    assert "damaged or cut short" in refused(stored(tmp_path, encoded(photo(), "JPEG")[:700]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_flipped_bytes_are_pictures_or_image_errors(tmp_path: Path, kind: str) -> None:
    data = encoded(photo(), kind)
    rng = np.random.default_rng(1)
    path = tmp_path / "flipped"
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        assert outcome(lambda: open_image(path)) in ("fine", "named")


def test_a_flipped_png_pixel_is_found_by_its_checksum(tmp_path: Path) -> None:
    data = bytearray(encoded(photo(), "PNG", compress_level=0))
    data[len(data) // 2] ^= 1
    refused(stored(tmp_path, bytes(data)))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    message = refused(stored(tmp_path, encoded(photo(), kind), "picture.png"))
    assert f"{OTHERS[kind]} " in message
    assert "expected JPEG, PNG, WebP or HEIC: save it as PNG or JPEG, for example with: python -c" in message


@pytest.mark.parametrize("data", [b"", b"hello, this is text\n" * 9, EPS, bytes(4096)])
def test_not_an_image(tmp_path: Path, data: bytes) -> None:
    found = "PostScript file" if data == EPS else "not a picture" if data else "is empty (0 bytes)"
    assert found in refused(stored(tmp_path, data, "notes.jpg"))


def test_the_name_s_ending_does_not_matter(tmp_path: Path) -> None:
    assert open_image(stored(tmp_path, encoded(photo(), "JPEG"), "really.png")).size == photo().size


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "not there" in refused(tmp_path / "nothing.png")
    assert "no file" in refused(tmp_path)


def heic(brand: bytes = b"heic", others: bytes = b"mif1heic") -> bytes:
    return struct.pack(">I4s4sI", 16 + len(others), b"ftyp", brand, 0) + others + bytes(200)


@pytest.mark.parametrize("data", [heic(), heic(b"heic", b""), heic(b"mif1", b"mif1heic"), heic(b"msf1", b"hevc")])
def test_heic_without_its_plugin(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert "pip install pillow-heif" in refused(stored(tmp_path, data, "IMG_0001.HEIC"))


def test_heic_with_its_plugin_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        registered = False

        @classmethod
        def register_heif_opener(cls) -> None:
            cls.registered = True
            monkeypatch.setitem(Image.OPEN, "HEIF", (lambda fp, name: photo(), lambda prefix: prefix[4:8] == b"ftyp"))

    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", Plugin)
    assert open_image(stored(tmp_path, heic())).size == photo().size
    assert Plugin.registered


@pytest.mark.parametrize("when", ["open", "load"])
def test_a_decoder_s_complaint_stays_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """libheif's end in a line break, which would make two lines of the command's one."""

    def complain(*_: object, **__: object) -> None:
        raise RuntimeError("points outside\nof the file\n")

    path = stored(tmp_path, encoded(photo(), "PNG"))
    monkeypatch.setattr(Image if when == "open" else ImageFile.ImageFile, when, complain)
    assert "RuntimeError: points outside of the file" in refused(path)


def test_avif_is_not_taken_for_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    assert "is an AVIF picture, which is not read" in refused(stored(tmp_path, encoded(photo(), "AVIF")))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND"]
    framed = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_oversize_is_refused_by_the_header(tmp_path: Path) -> None:
    message = refused(stored(tmp_path, png_header(8000, 7000)))
    assert "8000×7000 = 56000000 pixels, at most 50000000" in message
    assert "at most 100 are read" in refused(stored(tmp_path, encoded(photo(), "PNG")), max_pixels=100)


@pytest.mark.parametrize("size", [(12_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_the_header(tmp_path: Path, size: tuple[int, int]) -> None:
    assert "at most 50000000" in refused(stored(tmp_path, png_header(*size)))


def test_too_long_a_picture_is_refused(tmp_path: Path) -> None:
    assert "at most 30000 a side" in refused(stored(tmp_path, png_header(30_001, 5)))
    with pytest.raises(ImageError, match="crop rule would make it 64000 pixels long"):
        preprocess(Image.new("RGB", (1000, 1)), 64, "crop")
