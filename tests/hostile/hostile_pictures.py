"""Pictures as strangers send them, made from one small photo: bombs, cut, flipped, turned.

A case writes its file, opens it by both readers, the reference's and the bundle host's, and asserts what the row's rule
says. Whether a JPEG was filled in is told by another way than the product's: a second decode by plain Pillow with other
bytes put before the end mark, which shows in pixels exactly where data was missing.
"""

from __future__ import annotations

import functools
import io
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ordeal import Case
from PIL import ExifTags, Image, ImageDraw

from fastvlm.errors import ImageError
from fastvlm_ref import image as reference
from validation.bundle_host import picture as host

Pixels = np.ndarray
TURNS = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that each orientation undoes
FOUND = (1513,)  # seeds of `damaged` that once came through: a block was completed by the first byte of the question
BLOCKS = 2 * 16 * 16  # pixels of the two last blocks, chroma halved: what a JPEG may lose unseen
WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive": ("JPEG", {"progressive": True, "quality": 90}),
    "restarts": ("JPEG", {"restart_marker_rows": 1, "quality": 90}),
    "dense": ("JPEG", {"restart_marker_blocks": 2, "subsampling": 0}),
    "webp": ("WEBP", {"quality": 90}),
    "lossless": ("WEBP", {"lossless": True}),
}


def photo(width: int = 151, height: int = 97) -> Image.Image:
    """Smooth colours, noise and text, nowhere grey of 128."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, 40 + y * 150 / height, 60 + 50 * np.sin(x / 5 + y / 3)], -1)
    picture = Image.fromarray(np.clip(base + rng.normal(0, 15, base.shape), 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text((3, 3), "R7", fill="white")
    return picture


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def whole(way: str) -> bytes:
    kind, options = WAYS[way]
    return saved(photo(), kind, **options)


@functools.cache
def truth(way: str) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(whole(way))).convert("RGB"))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    """A PNG of a header, the chunks given, and an end."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IEND", b"")


def rows(width: int, height: int) -> bytes:
    """Compressed rows of RGB, none of them black."""
    return chunk(b"IDAT", zlib.compress((b"\0" + b"\x50\x60\x70" * width) * height))


def outcome(path: Path) -> tuple[Pixels | None, str]:
    """(pixels, "") or (None, the error's words) by the reference; the host must find the same of a PNG or JPEG."""
    try:
        pixels: Pixels | None = np.asarray(reference.open_image(path))
        said = ""
    except ImageError as error:
        pixels, said = None, str(error)
        assert said.isprintable(), said
        assert len(said) < 600 + len(str(path)), said
    with path.open("rb") as file:
        head = file.read(8)
    if head[:2] == b"\xff\xd8" or head[:4] == b"\x89PNG":
        try:
            seen: Pixels | None = host.open_photo(path)
        except ImageError:
            seen = None
        assert (seen is None) == (pixels is None), f"the reference says {said or 'fine'}, the host the other"
        assert pixels is None or np.array_equal(seen, pixels), "the host sees other pixels"
    return pixels, said


def refused(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    pixels, said = outcome(path)
    assert pixels is None, f"it was read: {pixels.shape if pixels is not None else 0}"
    assert words in said, said
    raise ImageError(said)


def equal(path: Path, data: bytes, expected: Pixels, off: int = 0) -> None:
    path.write_bytes(data)
    pixels, said = outcome(path)
    assert pixels is not None, said
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= off


# Bombs and lies


def jpeg_with(code: int, change: Callable[[bytearray], None], way: str = "jpeg") -> bytes:
    """The JPEG with one header segment changed in place."""
    data = bytearray(whole(way))
    at = data.index(bytes((0xFF, code)))
    body = bytearray(data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4])])
    change(body)
    data[at + 4 : at + 4 + len(body)] = body
    return bytes(data)


def without(code: int) -> bytes:
    data = whole("jpeg")
    while (at := data.find(bytes((0xFF, code)))) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    return data


def sized(width: int, height: int) -> Callable[[bytearray], None]:
    def change(body: bytearray) -> None:
        body[1:5] = struct.pack(">HH", height, width)

    return change


def empty(body: bytearray) -> None:
    body[1:] = bytes(len(body) - 1)


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes two thousand times."""
    data = whole("progressive")
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 2000 + b"\xff\xd9"


def webp_canvas() -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" * 2 + whole("webp")[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def half_rows() -> bytes:
    return png(60, 40, rows(60, 20))


def half_interlaced() -> bytes:
    return png(61, 41, chunk(b"IDAT", zlib.compress(b"\0" * 999)), interlaced=1)


def text_bomb() -> bytes:
    """80 MB of what Pillow would look for an orientation in."""
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(80 * 2**20), 1))
    return png(60, 40, bomb, rows(60, 40))


def behind_rows() -> bytes:
    """80 MB of zeros behind the last row, in the same stream."""
    stream = zlib.compress((b"\0" + b"\x50\x60\x70" * 60) * 40 + bytes(80 * 2**20), 1)
    return png(60, 40, chunk(b"IDAT", stream))


def exif_bomb() -> bytes:
    """An EXIF whose entry names four gigabytes, and whose next directory is itself."""
    tiff = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 5, 2**30, 8) + struct.pack("<I", 8)
    return saved(photo(), "JPEG", exif=b"Exif\0\0" + tiff)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "png 20,000 square": (lambda: png(20_000, 20_000, rows(9, 9)), "pixels"),
    "png 2³¹ square": (lambda: png(2**31 - 1, 2**31 - 1), "50000000"),
    "png just over": (lambda: png(7072, 7072, rows(9, 9)), "at most 50000000"),
    "png long": (lambda: png(30_001, 1, rows(30_001, 1)), "a side"),
    "png tall": (lambda: png(1, 30_001, rows(1, 30_001)), "a side"),
    "png without width": (lambda: png(0, 5), ""),
    "png large and empty": (lambda: png(7000, 7000, chunk(b"IDAT", zlib.compress(b""))), "cut short"),
    "png half its rows": (half_rows, "ends after 3,620 of 7,240 bytes"),
    "png half a pass": (half_interlaced, "cut short"),
    "png without data": (lambda: png(60, 40), ""),
    "png without palette": (lambda: png(60, 40, chunk(b"IDAT", zlib.compress(bytes(61 * 40))), colour=3), ""),
    "png chunk of 2 GB": (lambda: half_rows()[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT", ""),
    "png text bomb": (text_bomb, "unpacks to over 1,048,576 bytes"),
    "png of 10,001 headers": (lambda: png(60, 40, chunk(b"prVt", b"") * 10_001, rows(60, 40)), "over 10,000 headers"),
    "png of a wrong checksum": (lambda: whole("png")[:-16] + b"XXXX" + whole("png")[-12:], ""),
    "jpeg 65,535 square": (lambda: jpeg_with(0xC0, sized(65_535, 65_535)), "4294836225"),
    "jpeg ten times as tall": (lambda: jpeg_with(0xC0, sized(151, 970)), "ends early"),
    "jpeg half as tall": (lambda: jpeg_with(0xC0, sized(151, 48)), "are not used"),
    "jpeg without height": (lambda: jpeg_with(0xC0, sized(151, 0)), ""),
    "jpeg of arithmetic": (lambda: whole("jpeg").replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic-coded"),
    "jpeg of empty tables": (lambda: jpeg_with(0xC4, empty), ""),
    "jpeg without quantities": (lambda: without(0xDB), ""),
    "jpeg of 2,000 scans": (many_scans, "over 64 scans"),
    "jpeg without scans": (lambda: whole("jpeg")[: whole("jpeg").index(b"\xff\xda")] + b"\xff\xd9", ""),
    "jpeg cut and ended": (lambda: whole("jpeg")[: len(whole("jpeg")) // 2] + b"\xff\xd9", "ends early"),
    "progressive cut and ended": (lambda: whole("progressive")[:-900] + b"\xff\xd9", ""),
    "webp of a huge canvas": (webp_canvas, "268435456 pixels"),
    "webp of no frame": (lambda: b"RIFF" + struct.pack("<I", 4) + b"WEBP", ""),
    "tiff": (lambda: saved(photo(), "TIFF"), "is a TIFF file, which is not read; expected JPEG, PNG, WebP or HEIC"),
    "gif": (lambda: saved(photo(), "GIF"), "GIF"),
}  # fmt: skip


def bombs(folder: Path, count: int = len(BOMBS)) -> list[Case]:
    path = folder / "bomb.bin"
    made = [
        (name, functools.partial(lambda make, words: refused(path, make(), words), *how)) for name, how in BOMBS.items()
    ]
    return made[:count]


def harmless(folder: Path) -> list[Case]:
    """What looks like a bomb and is a picture."""
    path, plain = folder / "harmless.bin", np.tile(np.array([0x50, 0x60, 0x70], np.uint8), (40, 60, 1))
    return [
        ("80 MB behind the last row", lambda: equal(path, behind_rows(), plain)),
        ("an EXIF of 4 GB", lambda: equal(path, exif_bomb(), _plain(saved(photo(), "JPEG")))),
        ("a film's frame, whose tables are known", lambda: equal(path, without(0xC4), truth("jpeg"))),
    ]


def large(folder: Path) -> list[Case]:
    """A picture in a file that is one byte too long, a hole for the most part."""

    def run() -> None:
        (folder / "large.jpg").write_bytes(whole("jpeg"))
        os.truncate(folder / "large.jpg", 512 * 2**20 + 1)
        pixels, said = outcome(folder / "large.jpg")
        assert pixels is None, "it was read"
        assert "536,870,913 bytes, at most 536,870,912" in said, said

    return [("a file of 512 MiB and a byte", run)]


# Cut and flipped


def mended(way: str, data: bytes) -> bytes:
    """A cut file with what a careless repair gives it: an end, and lengths that fit."""
    kind = WAYS[way][0]
    if kind == "JPEG":
        return data.rstrip(b"\xff") + b"\xff\xd9"
    if kind == "WEBP":
        data = data + bytes(len(data) % 2)
        inner = data[:16] + struct.pack("<I", len(data) - 20) + data[20:]
        return inner[:4] + struct.pack("<I", len(data) - 8) + inner[8:]
    at = data.index(b"IDAT")
    return data[: at - 4] + chunk(b"IDAT", data[at + 4 :]) + chunk(b"IEND", b"")


def cut(path: Path, seed: int, way: str) -> None:
    """A cut picture is refused, or is the whole one but for blocks that are too small to see."""
    rng = random.Random(f"cut {seed}")
    data = whole(way)
    place = rng.randrange(60, len(data) - 1)
    data = data[:place]
    if rng.random() < 0.6:
        if way == "png" and place < data.index(b"IDAT") + 10:
            place = 0
        data = mended(way, data) if place else data
    _lossless_or_named(path, way, data)


def flipped(path: Path, seed: int, way: str) -> None:
    """A flipped picture is refused, or decoded as far as its own bytes go."""
    rng = random.Random(f"flipped {seed}")
    data = bytearray(whole(way))
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(2, len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        start = rng.randrange(2, len(data))
        data[start : start + rng.randrange(1, len(data) // 3)] = bytes(len(data[start : start + len(data) // 3]))
    path.write_bytes(data)
    pixels, said = outcome(path)
    if pixels is None:
        raise ImageError(said)
    if way == "png":
        assert np.array_equal(pixels, truth(way)), "a changed PNG was taken"
    if WAYS[way][0] == "JPEG":
        _assert_not_filled_in(bytes(data))


def _lossless_or_named(path: Path, way: str, data: bytes) -> None:
    path.write_bytes(data)
    pixels, said = outcome(path)
    if pixels is None:
        raise ImageError(said)
    expected = truth(way)
    assert pixels.shape == expected.shape
    if WAYS[way][0] != "JPEG":
        assert np.array_equal(pixels, expected), "a cut picture was filled in"
        return
    off = int((np.abs(pixels.astype(int) - expected.astype(int)).max(-1) > 24).sum())
    assert off <= BLOCKS, f"{off} pixels of a cut picture are filled in"


def _assert_not_filled_in(data: bytes) -> None:
    end = (
        data.index(b"\xff\xd9", data.index(b"\xff\xda"))
        if b"\xff\xd9" in data[data.index(b"\xff\xda") :]
        else len(data)
    )
    filler = bytes(random.Random(1).randrange(1, 255) for _ in range(4000))
    seen = [_plain(data[:end] + more + b"\xff\xd9") for more in (b"", filler)]
    off = int((seen[0] != seen[1]).any(-1).sum())
    assert off <= BLOCKS, f"{off} pixels depend on what stands behind the data"


def _plain(data: bytes) -> Pixels:
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def damaged(folder: Path, count: int, first: int = 0) -> list[Case]:
    path, ways, made = folder / "damaged.bin", list(WAYS), list[Case]()
    for seed in (*FOUND, *range(first, first + count - len(FOUND))):
        way, how = ways[seed % len(ways)], (cut, flipped)[seed // len(ways) % 2]
        made.append((f"{how.__name__} {way} {seed}", functools.partial(how, path, seed, way)))
    return made


# Turned


def turned(folder: Path) -> list[Case]:
    return [(f"orientation {turn}", functools.partial(_turned, folder / "turned.bin", turn)) for turn in TURNS]


def _turned(path: Path, turn: int) -> None:
    upright, how, exif = photo(), TURNS[turn], Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    lying = upright if how is None else upright.transpose(Image.Transpose(how))
    expected = np.asarray(upright)
    equal(path, saved(lying, "PNG", exif=exif), expected)
    equal(path, saved(lying, "WEBP", exif=exif, lossless=True, exact=True), expected)
    plain = (
        np.asarray(Image.open(io.BytesIO(saved(lying, "JPEG"))).transpose(reference.UPRIGHT[turn]))
        if turn > 1
        else None
    )
    expected = plain if plain is not None else np.asarray(Image.open(io.BytesIO(saved(lying, "JPEG"))))
    equal(path, saved(lying, "JPEG", exif=exif), expected)
