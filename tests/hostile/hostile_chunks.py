"""PNGs by hand: interlaced ones of every kind, transparent colours of every depth, texts and chunks that lie or abound.

Expected pixels are worked out from the values that went in, by the rules that fastvlm_ref/image.py states.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_modes import over_white
from hostile_pictures import Pixels, equal, outcome, refused
from ordeal import Case
from png_writer import CHANNELS, DEPTHS, Values, chunk, header, stream, written

from fastvlm_ref import image as reference
from validation.bundle_host import picture as host

KINDS = [(colour, depth) for colour, depths in DEPTHS.items() for depth in depths]
SIZES = ((1, 1), (5, 3), (3, 9), (37, 23))
NAMES = {0: "grey", 2: "rgb", 3: "palette", 4: "grey with alpha", 6: "rgb with alpha"}
TABLE = np.random.default_rng(9).integers(0, 256, (256, 3), np.uint8)
PLAIN = np.tile(np.array([0x50, 0x60, 0x70], np.uint8), (40, 60, 1))
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def drawn(colour: int, depth: int, width: int = 37, height: int = 23) -> Values:
    return np.random.default_rng(depth).integers(0, 2**depth, (height, width, CHANNELS[colour]))


def palette(depth: int) -> bytes:
    return chunk(b"PLTE", TABLE[: 2**depth].tobytes())


def shown(values: Values, colour: int, depth: int) -> Pixels:
    """The pixels that the rules give, without a transparent colour."""
    if colour == 3:
        return TABLE[values[..., 0]]
    if colour == 0 and depth == 16:
        eight = (values * 255 + 32767) // 65535
    else:
        eight = values >> 8 if depth == 16 else values * (255 // (2**depth - 1))
    wide = np.repeat(eight[..., :1], 3, -1) if colour in (0, 4) else eight[..., :3]
    return over_white(wide, eight[..., -1]) if colour in (4, 6) else wide.astype(np.uint8)


def interlaced(folder: Path) -> list[Case]:
    """Every kind of picture by Adam7, in sizes that leave passes empty: the pixels of the plain one."""

    def run(colour: int, depth: int) -> None:
        before = [palette(depth)] * (colour == 3)
        for width, height in SIZES:
            values = drawn(colour, depth, width, height)
            expected, off = shown(values, colour, depth), int(colour in (4, 6))
            for woven in (False, True):
                data = written(values, depth, colour, *before, interlaced=woven)
                equal(folder / "woven.png", data, expected, off)

    return [
        (f"{NAMES[colour]} of {depth} bits, woven", functools.partial(run, colour, depth)) for colour, depth in KINDS
    ]


def clear(folder: Path) -> list[Case]:
    """A transparent colour of every depth: white where every bit is its own, as drawn elsewhere."""

    def run(colour: int, depth: int, high: int, woven: bool) -> None:
        values = drawn(colour, depth, height=150 if depth == 16 else 23)  # of several strips
        values[4, 5] = 2**depth * 2 // 3  # neither black nor white, which any scale leaves as they are
        wanted = values[4, 5].copy()
        for at, bit in enumerate((0, 1, depth - 1)):  # all but the same: one bit away in one channel
            values[6, at] = wanted
            values[6, at, -1] ^= 1 << bit if depth > bit else 0
        values[7, :9] = wanted
        expected = shown(values, colour, depth)
        expected[(values == wanted).all(-1)] = 255
        named = (wanted | high << depth).astype(">u2").tobytes()
        data = written(values, depth, colour, chunk(b"tRNS", named), interlaced=woven)
        equal(folder / "clear.png", data, expected)

    made = [
        (
            f"{NAMES[colour]} of {depth} bits, clear{' and woven' * woven}",
            functools.partial(run, colour, depth, 0, woven),
        )
        for colour, depth in KINDS
        if colour in (0, 2)
        for woven in (False, True)
    ]
    more = [(f"rgb of 8 bits, bits above it {high}", functools.partial(run, 2, 8, high, False)) for high in (1, 255)]
    return [
        *made,
        *more,
        ("grey of 4 bits, bits above it", functools.partial(run, 0, 4, 7, False)),
        *_low(folder),
        *_faded(folder),
    ]


def _low(folder: Path) -> list[Case]:
    """16-bit colours whose low bytes read as 8-bit ones, and the other way round: nothing here is clear."""

    def run(colour: int, pixel: int, named: int) -> None:
        values = np.full((5, 4, CHANNELS[colour]), pixel)
        data = written(values, 16, colour, chunk(b"tRNS", struct.pack(">H", named) * CHANNELS[colour]))
        equal(folder / "low.png", data, shown(values, colour, 16))

    pairs = ((0x4012, 0x0040), (0x0040, 0x4012), (0x1234, 0x1235), (0x1234, 0x1134), (0x12FF, 0x1200))
    return [
        (f"{NAMES[colour]} of 16 bits, {pixel:04x} is not {named:04x}", functools.partial(run, colour, pixel, named))
        for colour in (0, 2)
        for pixel, named in pairs
    ]


def _faded(folder: Path) -> list[Case]:
    """Palettes with a table of alpha, as long as the palette or shorter."""

    def run(depth: int, count: int) -> None:
        values = drawn(3, depth)
        alpha = np.concatenate((np.arange(3, 3 + count) * 7 % 256, np.full(256 - count, 255)))
        table = chunk(b"tRNS", alpha[:count].astype(np.uint8).tobytes())
        expected = over_white(TABLE[values[..., 0]], alpha[values[..., 0]])
        equal(folder / "faded.png", written(values, depth, 3, palette(depth), table), expected, 1)

    return [
        (f"palette of {depth} bits, {count} faded", functools.partial(run, depth, count))
        for depth in DEPTHS[3]
        for count in (1, 2**depth)
    ]


# Chunks


def plain(*before: bytes, behind: bytes = b"") -> bytes:
    """A picture of one colour with chunks before its data and behind it."""
    rows = (b"\0" + PLAIN[0].tobytes()) * 40
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"".join((header(60, 40, 8, 2), *before, data, behind, chunk(b"IEND")))


def text(name: bytes, keyword: bytes, words: bytes, level: int = 9) -> bytes:
    heads = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\1\0\0\0", b"iCCP": b"\0\0"}
    return chunk(name, keyword + heads[name] + (words if name == b"tEXt" else zlib.compress(words, level)))


def long_words(count: int) -> bytes:
    return (b"words that a camera or a model's maker left here, " * (count // 50 + 1))[:count]


TAKEN: dict[str, Callable[[], bytes]] = {
    "a text of 1.4 MB": lambda: plain(text(b"iTXt", b"Comment", long_words(1_400_000))),
    "a packed text of 1.4 MB behind": lambda: plain(behind=text(b"zTXt", b"prompt", long_words(1_400_000))),
    "a profile of 1.5 MB": lambda: plain(text(b"iCCP", b"camera", long_words(1_500_000))),
    "a text that unpacks to 80 MB": lambda: plain(text(b"zTXt", b"k", bytes(80 * 2**20), 1)),
    "a profile that unpacks to 80 MB": lambda: plain(text(b"iCCP", b"k", bytes(80 * 2**20), 1)),
    "a text called transparency": lambda: plain(text(b"tEXt", b"transparency", b"x")),
    "a text called interlace": lambda: plain(text(b"tEXt", b"interlace", b"x")),
    "a text called bbox": lambda: plain(text(b"tEXt", b"bbox", b"x")),
    "a text called xmp": lambda: plain(text(b"iTXt", b"xmp", b"x")),
    "a text called icc_profile": lambda: plain(text(b"zTXt", b"icc_profile", b"x")),
    "a colour made clear behind its data": lambda: plain(behind=chunk(b"tRNS", b"\0\x50\0\x60\0\x70")),
    "a second palette": lambda: written(
        np.ones((40, 60, 1), int), 8, 3, chunk(b"PLTE", b"\1\2\3\x50\x60\x70"), chunk(b"PLTE", b"junk, again")
    ),
    "a second clear colour": lambda: plain(chunk(b"tRNS", bytes(6)), chunk(b"tRNS", b"\0\x50\0\x60\0\x70")),
    "another header behind its data": lambda: plain(behind=header(9, 9, 8, 2)[8:]),
    "a second header": lambda: plain(header(9, 9, 8, 2)[8:]),
    "a frame that the picture is not in": lambda: plain(
        chunk(b"acTL", bytes(7) + b"\1"), chunk(b"fcTL", struct.pack(">5I2H2B", 0, 9, 9, 30, 30, 1, 1, 0, 0))
    ),
    "9,000 private chunks": lambda: plain(chunk(b"prVt") * 9000, behind=chunk(b"prVt") * 9000),
    "100,000 empty pieces of data": lambda: plain(behind=chunk(b"IDAT") * 100_000),
    "data and others in turn": lambda: plain(behind=(chunk(b"IDAT") + chunk(b"prVt")) * 30_000),
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "510,000 empty pieces of data": (lambda: plain(behind=chunk(b"IDAT") * 510_000), "over 500,000 chunks"),
    "510,000 chunks behind its data": (lambda: plain(behind=chunk(b"prVt") * 510_000), "over 500,000 chunks"),
    "data that claims 2 GB": (lambda: plain()[:33] + b"\x7f" + plain()[34:], "it ends within a chunk"),
    "a private chunk that claims 2 GB": (
        lambda: plain(behind=b"\x7f\xff\xff\xffprVt" + bytes(99)), "it ends within a chunk",
    ),
    "10,001 chunks before it": (lambda: plain(chunk(b"prVt") * 10_001), "over 10,000 headers"),
    "EXIF 65 times": (lambda: plain(chunk(b"eXIf", EXIF) * 65), "how it is turned in over 64 chunks"),
    "EXIF of 65 MiB": (lambda: plain(chunk(b"eXIf", bytes(65 * 2**20))), "bytes of metadata"),
    "a palette of 65 MiB": (lambda: plain(chunk(b"PLTE", bytes(65 * 2**20))), "bytes of metadata"),
    "EXIF in a text that unpacks to 8 MB": (
        lambda: plain(text(b"zTXt", b"Raw profile type exif", bytes(8 * 2**20))),
        "Raw profile type exif unpacks to over 1,048,576 bytes",
    ),
    "XMP that unpacks to 8 MB": (
        lambda: plain(text(b"iTXt", b"XML:com.adobe.xmp", bytes(8 * 2**20))), "XML:com.adobe.xmp unpacks to over",
    ),
    "XMP by the thousand": (
        lambda: plain(text(b"iTXt", b"XML:com.adobe.xmp", bytes(2**20)) * 999), "how it is turned in over 64 chunks",
    ),
}  # fmt: skip
TURNED: dict[str, Callable[[], bytes]] = {  # every way to say so that was read before the view was
    "EXIF": lambda: chunk(b"eXIf", EXIF),
    "EXIF in hexadecimal": lambda: text(
        b"zTXt", b"Raw profile type exif", b"\nexif\n%8d\n" % len(EXIF) + (b"Exif\0\0" + EXIF).hex().encode() + b"\n"
    ),
    "EXIF in a text": lambda: text(b"tEXt", b"exif", b"Exif\0\0" + EXIF),
    "XMP": lambda: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "packed XMP": lambda: text(b"iTXt", b"XML:com.adobe.xmp", XMP),
}  # fmt: skip


def chunks(folder: Path) -> list[Case]:
    """Chunks that are passed by, counted, or say how the picture is turned."""

    def turned(make: Callable[[], bytes]) -> None:
        for data in (plain(make()), plain(behind=make())):
            (folder / "chunks.png").write_bytes(data)
            pixels, said = outcome(folder / "chunks.png")
            assert pixels is not None, said
            assert pixels.shape == (60, 40, 3), "it lies on its side"

    path = folder / "chunks.png"
    return [
        *((name, functools.partial(lambda make: equal(path, make(), PLAIN), make)) for name, make in TAKEN.items()),
        *(
            (name, functools.partial(lambda make, words: refused(path, make(), words), *how))
            for name, how in REFUSED.items()
        ),
        *((f"turned by {name}", functools.partial(turned, make)) for name, make in TURNED.items()),
    ]


def cut_rows(folder: Path) -> list[Case]:
    """Streams that end early in files that are whole otherwise: woven ones, and those that get alpha when decoded."""

    def run(cut: int, depth: int, woven: bool) -> None:
        data = chunk(b"IDAT", zlib.compress(stream(drawn(2, depth), depth, woven)[:-cut]))
        clear = chunk(b"tRNS", b"\0\1" * 3)  # not the black of what is missing
        refused(folder / "cut.png", header(37, 23, depth, 2, woven) + clear + data + chunk(b"IEND"), "cut short")

    return [  # a whole row is what Pillow does not miss; of a woven picture's last pass they are as wide
        (f"{cut} bytes of {depth} bits{' and woven' * woven}", functools.partial(run, cut, depth, woven))
        for depth in (8, 16)
        for cut in (1, *((1 + 37 * 3 * depth // 8) * rows for rows in (1, 5, 11)))
        for woven in (False, True)
    ]


VAST: dict[str, tuple[int, int, bytes, bytes]] = {  # depth, colour, chunk before the data, a pixel
    "16-bit colour, clear": (16, 2, chunk(b"tRNS", b"\x10\x20" * 3), b"\x10\x20" * 3),
    "alpha": (8, 6, b"", b"\x10\x20\x30\x80"),
    "16-bit grey, clear": (16, 0, chunk(b"tRNS", b"\x10\x20"), b"\x10\x20"),
    "turned": (8, 2, chunk(b"eXIf", EXIF), b"\x10\x20\x30"),
}


def vast(folder: Path, count: int = len(VAST)) -> list[Case]:
    """Pictures of 50 megapixels in 300 KB, which the limits let through: 512 MiB must do for the steps of each."""

    def run(depth: int, colour: int, before: bytes, pixel: bytes) -> None:
        side, path = 7071, folder / "vast.png"
        packed = zlib.compressobj(1)
        rows = [packed.compress(b"\0" + pixel * side) for _ in range(side)]
        data = chunk(b"IDAT", b"".join((*rows, packed.flush())))
        path.write_bytes(header(side, side, depth, colour) + before + data + chunk(b"IEND"))
        assert reference.open_image(path).size == (side, side)
        assert host.open_photo(path).shape == (side, side, 3)

    return [(f"50 megapixels, {name}", functools.partial(run, *how)) for name, how in VAST.items()][:count]
