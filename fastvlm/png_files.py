"""A PNG's file: which of its chunks a decoder is shown, what its transparent colour is, and whether all rows are there.

Notable choices:
- a decoder is shown the chunks that make the picture and those that say how it is turned, and no others. No profile,
  text or further frame can then be too long for it; and Pillow, which keeps a text under its keyword among its own
  facts, never takes one called "transparency" or "interlace" for such a fact;
- what is passed by is still held to its checksum, once, when the rows are counted (`check_png`);
- a transparent colour is compared with every bit that the file has. Pillow widens grey of 2 and 4 bits and leaves the
  colour as it is, and keeps of 16-bit RGB the high bytes: the low ones are decoded beside them (`settle_clear`).
It imports no decoder: pictures are the caller's, and Pillow's.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from fastvlm.shown_file import ShownFile

MAX_HEADERS = 10_000  # chunks or segments in front of the image data: of a JPEG 65,533 bytes each
MAX_HEADER_BYTES = 64 * 2**20  # of these together, as far as a decoder is shown them: it keeps them all
MAX_CHUNKS = 500_000  # of one PNG: 1,074 bytes each in the largest file; encoders write 8,192 or more
MAX_TURNING = 64  # chunks that say how a picture is turned; one does
MAX_TEXT = 2**20  # bytes of unpacked text that says how a picture is turned: Pillow reads no more
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE = 1 << 18
ROWS = 64  # of a picture that are looked at in one go

FIRST = frozenset({b"IHDR", b"PLTE", b"tRNS"})  # of these the first counts, in front of the image data
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
TURNING = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp"})  # keywords that Pillow turns by
LARGEST = {"L;2": 3, "L;4": 15, "L": 255}  # value that a pixel of grey has in the file, by Pillow's rawmode
WIDE, LOW_BYTES = "RGB;16B", "RGB;16L"  # rawmodes of 16-bit RGB: the first byte of two is kept, or the second


class Damaged(ValueError):
    """A picture's file that does not hold all of it; the message says what is missing, in a few words."""


class Unread(ValueError):
    """A picture's file that may be whole and of which something is not read; the message says what, in a few words."""


class Shown(ShownFile):
    """The chunks of a PNG that a decoder is to see, as a file of their own; `frames`: whether others hold further ones.

    Of headers, palettes and transparent colours the first counts. Raises Unread for too many chunks, Damaged for one
    that is cut.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.frames = False
        self.show(0, len(SIGNATURE))
        before, kept, turning, data = 0, 0, 0, False
        once = set(FIRST)
        for name, place, length in _places(file):
            data |= name == b"IDAT"
            before += not data
            self.frames |= name == b"fdAT"
            if (name in once and not data) or _counts(file, name, length):
                once.discard(name)
                self.show(place, 12 + length)
                kept += length * (name != b"IDAT")
                turning += name == b"eXIf" or name in TEXTS
            if before > MAX_HEADERS:
                raise Unread(f"it has over {MAX_HEADERS:,} headers before its image data")
            if turning > MAX_TURNING:
                raise Unread(f"it says how it is turned in over {MAX_TURNING} chunks")
            if kept > MAX_HEADER_BYTES:
                raise Unread(f"it has over {MAX_HEADER_BYTES:,} bytes of metadata")


def _places(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, where it begins, bytes of its data) of each chunk up to the end; the file stands at its data.

    Raises Damaged for one that the file does not hold: decoders ask for as much memory as it claims.
    """
    place, name, size = len(SIGNATURE), b"", file.seek(0, io.SEEK_END)
    for _ in range(MAX_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or name == b"IEND":
            return
        length, name = struct.unpack(">I4s", head)
        if place + 12 + length > size:
            raise Damaged("it ends within a chunk")
        yield name, place, length
        place += 12 + length
    raise Unread(f"it has over {MAX_CHUNKS:,} chunks")


def _counts(file: BinaryIO, name: bytes, length: int) -> bool:
    """Whether a decoder is to see a chunk, at whose data the file stands, however many others there are of its name."""
    return name in (b"IDAT", b"IEND", b"eXIf") or (name in TEXTS and _turns(file, name, length))


def _turns(file: BinaryIO, name: bytes, length: int) -> bool:
    """Whether a text may say how the picture is turned; raises Unread for one that unpacks to more than MAX_TEXT."""
    keyword, _, body = file.read(min(length, 80)).partition(b"\0")
    if keyword not in TURNING:
        return name == b"tEXt" and keyword == b"exif"
    if name == b"tEXt" or (name == b"iTXt" and body[:1] == b"\0") or length > MAX_HEADER_BYTES:
        return True
    body += file.read(max(0, length - 80))
    packed = body[1:] if name == b"zTXt" else body[2:].split(b"\0", 2)[-1]  # behind a language and the keyword in it
    stream = zlib.decompressobj()
    try:
        stream.decompress(packed, MAX_TEXT)
    except zlib.error:
        return True  # Pillow passes it by
    if stream.unconsumed_tail:
        raise Unread(f"its {keyword.decode()} unpacks to over {MAX_TEXT:,} bytes")
    return True


def settle_clear(image: Any, rawmode: str, file: BinaryIO) -> None:
    """Makes the transparent colour of a decoded PNG fit its pixels; of 16-bit RGB it becomes alpha.

    `image` is Pillow's, decoded from `file` by `rawmode`. A value has as many bits as the file's pixels; others that
    the chunk has room for do not count (PNG 1.2, 4.2.1.1).
    """
    clear = image.info.get("transparency")
    if clear is None:
        return
    if rawmode == WIDE:
        _clear_wide(image, clear, file)
    elif rawmode in LARGEST:
        image.info["transparency"] = (clear & LARGEST[rawmode]) * (255 // LARGEST[rawmode])
    elif rawmode == "RGB":
        image.info["transparency"] = tuple(value & 255 for value in clear)


def _clear_wide(image: Any, clear: tuple[int, int, int], file: BinaryIO) -> None:
    """Gives 16-bit RGB its alpha, strip by strip: a large picture and its low bytes are most of what may exist."""
    low = type(image)(io.BufferedReader(Shown(file)))
    low.tile = [tile._replace(args=LOW_BYTES) for tile in low.tile]
    low.load()
    halves = (image, [value >> 8 for value in clear]), (low, [value & 255 for value in clear])
    opaque = image.getchannel(0).point([0] * 256)
    for top in range(0, image.height, ROWS):
        box = (0, top, image.width, min(top + ROWS, image.height))
        for half, values in halves:
            for channel, value in zip(half.crop(box).split(), values, strict=True):
                opaque.paste(255, box, channel.point([0 if at == value else 255 for at in range(256)]))
    image.putalpha(opaque)
    del image.info["transparency"]


def check_png(file: BinaryIO, *, rows: bool = True) -> None:
    """Raises Damaged where a checksum of a PNG is wrong, its end is missing or, with `rows`, any of its rows."""
    if file.read(8) != SIGNATURE:
        raise Damaged("it does not begin as a PNG")
    chunks = _chunks(file)
    name, head = next(chunks, (b"", b""))
    if name != b"IHDR" or len(head) != 13:
        raise Damaged("its header is missing")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    expected = _png_bytes(width, height, depth * CHANNELS.get(colour, 1), bool(interlaced)) if rows else 0
    found = 0
    stream = zlib.decompressobj()
    palette = colour != 3
    for name, data in chunks:
        palette |= name == b"PLTE"
        if name == b"IDAT" and not palette:
            raise Damaged("its palette is missing")
        while name == b"IDAT" and data and found < expected and not stream.eof:
            found += len(stream.decompress(data, PIECE))
            data = stream.unconsumed_tail
    if found < expected:
        raise Damaged(f"its image data ends after {found:,} of {expected:,} bytes")


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yields (name, a piece of its data) of a PNG's chunks up to its end, and holds each to its checksum."""
    name = b""
    while name != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise Damaged("its end is missing")
        length, name = struct.unpack(">I4s", head)
        checksum = zlib.crc32(name)
        while length:
            data = file.read(min(length, PIECE))
            if not data:
                raise Damaged("it ends within a chunk")
            length -= len(data)
            checksum = zlib.crc32(data, checksum)
            yield name, data
        _compare(file.read(4), name, checksum)


def _compare(found: bytes, name: bytes, checksum: int) -> None:
    if found != checksum.to_bytes(4):
        raise Damaged(f"its chunk {name!r} has another checksum")


def _png_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows, each with the byte that names its filter, in one pass or in Adam7's seven."""
    total = 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
