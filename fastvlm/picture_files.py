"""Whether a picture's file holds all of the picture: what decoders fill in silently is found in the file itself.

A decoder that runs out of data paints the rest grey (JPEG) or leaves it black (PNG), and says nothing where an end mark
follows. So:
- PNG: checksums are compared up to the end, and the rows that its compressed stream holds are counted (`check_png`);
- JPEG: the decoder is fed marker by marker and asked, before each, whether it still waits for data or has stopped
  listening (`feed_jpeg`); scans and restart marks are counted against the frame. Nothing is decoded twice.
What cannot be seen: bytes that were changed without a change of how many are used, since JPEG and WebP have no
checksums; and a loss within the last two blocks of 8×8 in front of a marker. WebP and HEIC name their lengths, and
their decoders hold files to them. It knows no decoder: the caller brings one.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, BinaryIO

MAX_FILE_BYTES = 512 * 2**20  # 50 megapixels of 16-bit RGBA take 400 MB uncompressed
MAX_HEADERS = 10_000  # of a JPEG 65,533 bytes each, more than the largest profile and preview take
MAX_SCANS = 64  # a progressive JPEG has about 10; each one passes over the whole picture, however few bytes it has
FEW, MOST = 64, 1024  # stretches between restart marks that are checked for bytes left over, and each by itself
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE = 1 << 18

FILL = re.compile(rb"\xff*")  # bytes that may stand in front of a marker
MARKER = re.compile(rb"\xff[^\x00]")  # FF 00 is a byte of data; begins with one byte, which is searched for fast
SOS, EOI, RESTARTS = 0xDA, 0xD9, range(0xD0, 0xD8)
FRAMES = {0xC0: "baseline", 0xC1: "sequential", 0xC2: "progressive"}
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
ONES = b"\xff\x00" * 8  # 64 bits that are no code: what a decoder reads ahead at the end, and not one whole block more
WITHHELD = 16  # bytes of a stretch that come last, one by one, so that a decoder that has stopped listening is seen
STEPS = 4

Decode = Callable[[bytes], tuple[int, int]]


class Damaged(ValueError):
    """A picture's file that does not hold all of it; the message says what is missing, in a few words."""


def load_whole(image: Any, file: BinaryIO, get_decoder: Callable[..., Any]) -> None:
    """Decodes a picture that Pillow has opened from `file`; raises Damaged where the file does not hold all of it.

    `get_decoder` is `PIL.Image._getdecoder`. What a JPEG has behind its end mark is not looked at. Of a PNG every
    checksum is, and its rows are counted where the last one may be missing: one that was never decoded is all zeros.
    """
    if (size := file.seek(0, 2)) > MAX_FILE_BYTES:
        raise Damaged(f"it has {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
    file.seek(0)
    if image.format in ("JPEG", "MPO"):
        image.load_prepare()
        ((name, extents, _, args),) = image.tile
        decoder = get_decoder(image.mode, name, args, image.decoderconfig)
        try:
            decoder.setimage(image.im, extents)
            feed_jpeg(file.read(), decoder.decode)
        finally:
            decoder.cleanup()
        image.tile = []  # else it is decoded again when it is looked at
        return
    image.load()
    if image.format == "PNG":
        last = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
        file.seek(0)
        check_png(file, rows=bool(image.info.get("interlace")) or not any(last))


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
        if file.read(4) != checksum.to_bytes(4):
            raise Damaged(f"its chunk {name!r} has another checksum")


def _png_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows, each with the byte that names its filter, in one pass or in Adam7's seven."""
    total = 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def feed_jpeg(data: bytes, decode: Decode) -> None:
    """Gives a JPEG's bytes to a decoder up to the end mark; raises Damaged where they do not hold all of the picture.

    `decode` takes bytes and returns (how many of them it used, or −1 when it wants no more; 0, or an error's number),
    as Pillow's decoders do: it uses bytes up to the block that it cannot finish, and is given the rest again.
    """
    feed = _Feed(decode)
    frame = _Frame()
    start, place = 0, 2
    while True:
        _, place, code = _marker(data, place)
        if code == EOI:
            frame.check_complete()
            feed(data[start:place])
            return
        if code in RESTARTS or code == 1:  # outside of a scan: decoders pass it by
            continue
        body = data[place + 2 : place + int.from_bytes(data[place : place + 2])]
        place += 2 + len(body)
        frame.note(code, body)
        if code == SOS:
            feed(data[start:place])
            start = place = _scan(data, place, frame, feed)


def _scan(data: bytes, place: int, frame: _Frame, feed: _Feed) -> int:
    """Feeds the stretches of one scan, and the restart marks between them; returns where the next marker begins."""
    expected = frame.restarts()
    stretches = list(islice(_stretches(data, place), expected + 2))  # one more tells, and millions are not listed
    check_restarts([mark for _, _, mark in stretches], expected)
    thorough, every = len(stretches) <= FEW, 1 + len(stretches) // MOST
    begun = place
    for number, (start, end, mark) in enumerate(stretches):
        if number % every == 0 or mark not in RESTARTS:
            feed.stretch(data, begun, start, end, thorough)
            begun = end
    return begun


def _stretches(data: bytes, place: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, the marker behind) of the data between markers, up to the first that is no restart mark."""
    while True:
        end, behind, mark = _marker(data, place)
        yield place, end, mark
        if mark not in RESTARTS:
            return
        place = behind


def _marker(data: bytes, place: int) -> tuple[int, int, int]:
    """Returns where the next marker begins, where it ends, and its code; fill bytes may stand in front of it."""
    found = MARKER.search(data, place)
    start = found.start() if found else len(data)
    fill = FILL.match(data, start + 1)
    end = fill.end() if fill else len(data)
    if end >= len(data):
        raise Damaged("it ends without its end mark")
    return start, end + 1, data[end]


def check_restarts(marks: list[int], expected: int) -> None:
    """Raises Damaged unless the marks that end a scan's stretches are `expected` restart marks in order, and another.

    Of more than are expected, one is enough.
    """
    found = [mark for mark in marks if mark in RESTARTS]
    if len(found) != expected or any(mark != 0xD0 + at % 8 for at, mark in enumerate(found)):
        more = "or more " if len(found) > expected else ""
        raise Damaged(f"{expected:,} restart marks are expected in order, {len(found):,} {more}were found")


def check_headers(file: BinaryIO) -> None:
    """Raises Damaged for a JPEG or a PNG of more than MAX_HEADERS segments or chunks in front of its image data.

    Pillow keeps every one of them when it opens a file. Other kinds are passed by; the file stands at its begin after.
    """
    head = file.read(8)
    try:
        if head == SIGNATURE:
            _count(file, 8, _next_chunk)
        elif head[:2] == b"\xff\xd8":
            _count(file, 2, _next_segment)
    finally:
        file.seek(0)


def _count(file: BinaryIO, place: int, following: Callable[[bytes], int]) -> None:
    for _ in range(MAX_HEADERS):
        file.seek(place)
        length = following(file.read(8))
        if not length:
            return
        place += length
    raise Damaged(f"it has over {MAX_HEADERS:,} headers before its image data")


def _next_chunk(head: bytes) -> int:
    """Bytes of the chunk that begins so; 0 where its image data begins, or it ends."""
    return 0 if len(head) < 8 or head[4:] in (b"IDAT", b"IEND") else 12 + int.from_bytes(head[:4])


def _next_segment(head: bytes) -> int:
    """As `_next_chunk`, of a JPEG's segment; a fill byte or a mark without data counts as one of its own."""
    if len(head) < 4 or head[0] != 0xFF or head[1] in (SOS, EOI):
        return 0
    if head[1] == 0xFF:
        return 1
    return 2 if head[1] in RESTARTS or head[1] == 1 else 2 + int.from_bytes(head[2:4])


class _Feed:
    """A decoder, and the bytes that it has been given and has not used."""

    def __init__(self, decode: Decode) -> None:
        self.decode, self.waiting, self.done = decode, b"", False

    def __call__(self, data: bytes) -> int:
        """Gives bytes; returns how many the decoder has not used."""
        if self.done:
            return 0
        self.waiting += data
        used, error = self.decode(self.waiting)
        if error < 0:
            raise Damaged("it cannot be decoded")
        self.done = used < 0
        self.waiting = self.waiting[used:] if used >= 0 else b""
        return len(self.waiting)

    def stretch(self, data: bytes, begun: int, start: int, end: int, thorough: bool) -> None:
        """Gives bytes from `begun` on, of which those from `start` to `end` are the last stretch.

        Raises Damaged where the decoder needs more of them, or fewer. One that has all its blocks looks for a marker
        and uses up any byte at once, where one that still decodes wants several for its next bits.
        """
        early = end - WITHHELD - (end - start) // 64
        if thorough and early > start:
            self(data[begun:early])
            idle = [self(data[at : at + 1]) == 0 for at in range(early, early + STEPS)]
            if self.done or all(idle):
                raise Damaged(f"{end - early:,} bytes or more of its image data are not used, so that some are wrong")
            begun = early + STEPS
        self(data[begun:end] + ONES)
        # One byte may be what completes a block; the next ones then wait for more
        if any(self(b"\0") for _ in range(STEPS)):
            raise Damaged("its image data ends early")


class _Frame:
    """What a JPEG's headers promise: components, and which bits of which coefficients its scans have brought."""

    def __init__(self) -> None:
        self.kind, self.scans, self.interval = 0, 0, 0
        self.size = (0, 0)
        self.sampling: dict[int, tuple[int, int]] = {}
        self.left: dict[tuple[int, int], int] = {}  # (component, coefficient) → bits that are still to come
        self.scan: list[int] = []

    def note(self, code: int, body: bytes) -> None:
        """Reads a header; raises Damaged for a kind that is not read."""
        if code in OTHER_FRAMES:
            raise Damaged(f"it is of JPEG's rare kind {code - 0xC0}, read are {', '.join(FRAMES.values())}")
        if code in FRAMES and len(body) >= 6 + 3 * body[5] and not self.kind:
            self.kind = code
            self.size = (int.from_bytes(body[3:5]), int.from_bytes(body[1:3]))
            for at in range(6, 6 + 3 * body[5], 3):
                self.sampling[body[at]] = max(1, body[at + 1] >> 4), max(1, body[at + 1] & 15)
        elif code == 0xDD and len(body) >= 2:
            self.interval = int.from_bytes(body[:2])
        elif code == SOS:
            self._note_scan(body)

    def _note_scan(self, body: bytes) -> None:
        count = body[0] if body else 0
        if not 1 <= count <= 4 or len(body) < 1 + 2 * count + 3:
            raise Damaged("a scan's header is cut short")
        self.scans += 1
        if self.scans > MAX_SCANS:
            raise Damaged(f"it has over {MAX_SCANS} scans")
        self.scan = list(body[1 : 1 + 2 * count : 2])
        first, until, bits = body[1 + 2 * count : 4 + 2 * count]
        wanted = range(first, min(until, 63) + 1) if self.kind == 0xC2 else range(64)
        for component in self.scan:
            for coefficient in wanted:
                self.left[component, coefficient] = bits & 15 if self.kind == 0xC2 else 0

    def restarts(self) -> int:
        """Returns how many restart marks the scan's size and interval ask for."""
        return max(0, -(-self._units() // self.interval) - 1) if self.interval else 0

    def _units(self) -> int:
        """How many units of blocks a scan has: all components' together, or the blocks of one."""
        widest = max((across for across, _ in self.sampling.values()), default=1)
        tallest = max((down for _, down in self.sampling.values()), default=1)
        if len(self.scan) == 1:
            across, down = self.sampling.get(self.scan[0], (1, 1))
            if len(self.sampling) == 1:
                widest, tallest = across, down  # of a picture of one component no block is left out
            width, height = -(-self.size[0] * across // widest), -(-self.size[1] * down // tallest)
            return -(-width // 8) * -(-height // 8)
        return -(-self.size[0] // (8 * widest)) * -(-self.size[1] // (8 * tallest))

    def check_complete(self) -> None:
        """Raises Damaged unless the scans have brought every bit of every coefficient of every component."""
        if not self.sampling:
            raise Damaged("it has no frame")
        wanted = [(component, at) for component in self.sampling for at in range(64)]
        missing = sum(self.left.get(key, 1) != 0 for key in wanted)
        if missing:
            raise Damaged(f"its scans lack {missing} of {len(wanted)} coefficients; the last ones are missing")
