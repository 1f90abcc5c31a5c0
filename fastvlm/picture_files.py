"""Whether a picture's file holds all of the picture: what decoders fill in silently is found in the file itself.

A decoder that runs out of data paints the rest grey (JPEG) or leaves it black (PNG), and says nothing where an end mark
follows. So:
- PNG: checksums are compared up to the end, and the rows that its compressed stream holds are counted (`png_files`,
  which also shows decoders a part of the chunks alone);
- JPEG: the decoder is fed marker by marker and asked, before each, whether it still waits for data or has stopped
  listening (`feed_jpeg`); scans and restart marks are counted against the frame. Nothing is decoded twice. Decoders
  that read its facts are shown a part of the segments alone (`jpeg_segments`).
What cannot be seen: bytes that were changed without a change of how many are used, since JPEG and WebP have no
checksums; and a loss within the last two blocks of 8×8 in front of a marker. WebP and HEIC name their lengths, and
their decoders hold files to them. It knows no decoder: the caller brings one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, BinaryIO

from fastvlm.jpeg_segments import EOI, RESTARTS, SOS, ShownJpeg
from fastvlm.png_files import (
    MAX_HEADERS,
    PIECE,
    SIGNATURE,
    Damaged,
    Shown,
    Unread,
    check_png,
    settle_clear,
)

MAX_FILE_BYTES = 512 * 2**20  # 50 megapixels of 16-bit RGBA take 400 MB uncompressed
MAX_SCANS = 64  # a progressive JPEG has about 10; each one passes over the whole picture, however few bytes it has
FEW, MOST = 64, 1024  # stretches between restart marks that are checked for bytes left over, and each by itself

GREY16 = [(value * 255 + 32767) // 65535 for value in range(65536)]
FILL = re.compile(rb"\xff*")  # bytes that may stand in front of a marker
MARKER = re.compile(rb"\xff[^\x00]")  # FF 00 is a byte of data; begins with one byte, which is searched for fast
FRAMES = {0xC0: "baseline", 0xC1: "sequential", 0xC2: "progressive"}
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
ARITHMETIC = range(0xC9, 0xD0)
ONES = b"\xff\x00" * 8  # 64 bits that are no code: what a decoder reads ahead at the end, and not one whole block more
WITHHELD = 16  # bytes of a stretch that come last, one by one, so that a decoder that has stopped listening is seen
STEPS = 4

Decode = Callable[[bytes], tuple[int, int]]


def load_whole(image: Any, file: BinaryIO, get_decoder: Callable[..., Any]) -> None:
    """Decodes a picture that Pillow has opened from `file`; raises Damaged where the file does not hold all of it.

    `get_decoder` is `PIL.Image._getdecoder`. What a JPEG has behind its end mark is not looked at. Of a PNG every
    checksum is, and its rows are counted where the last one may be missing: one that was never decoded is all zeros.
    A PNG's transparent colour fits the pixels then; of 16-bit RGB it has become alpha.
    """
    if (size := file.seek(0, 2)) > MAX_FILE_BYTES:
        raise Damaged(f"it has {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
    file.seek(0)
    if image.format == "JPEG":
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
    rawmode = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    image.load()
    if image.format == "PNG":
        last = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
        file.seek(0)
        check_png(file, rows=bool(image.info.get("interlace")) or not any(last))
        settle_clear(image, rawmode, file)


def eight_bits(grey: Any) -> Any:
    """Returns mode L of Pillow's 16-bit grey, v · 255 / 65535 rounded, or LA where one of its values is transparent."""
    clear = grey.info.get("transparency")
    values = grey.convert("I")
    scaled = values.point(GREY16, "L")
    if clear is not None:
        scaled.putalpha(values.point([255 * (value != clear) for value in range(65536)], "L"))
        del scaled.info["transparency"]
    return scaled


def feed_jpeg(data: bytes, decode: Decode) -> None:
    """Gives a JPEG's bytes to a decoder up to the end mark; raises Damaged where they do not hold all of the picture.

    `decode` takes bytes and returns (how many of them it used, or −1 when it wants no more; 0, or an error's number),
    as Pillow's decoders do: it uses bytes up to the block that it cannot finish, and is given the rest again.
    """
    feed = _Feed(decode)
    frame = _Frame()
    start, place = 0, 2
    for _ in range(MAX_HEADERS):
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
    raise Unread(f"it has over {MAX_HEADERS:,} headers")


def _scan(data: bytes, place: int, frame: _Frame, feed: _Feed) -> int:
    """Feeds the stretches of one scan, and the restart marks between them; returns where the next marker begins."""
    expected = frame.restarts()
    stretches = list(islice(_stretches(data, place), expected + 3))  # one more tells, and millions are not listed
    if frame.interval and len(stretches) == expected + 2 and _is_idle(stretches):
        stretches[-2:] = [(*stretches[-2][:2], stretches[-1][2])]
    check_restarts([mark for _, _, mark in stretches], expected)
    thorough, every = len(stretches) <= FEW, 1 + len(stretches) // MOST
    begun = place
    for number, (start, end, mark) in enumerate(stretches):
        if number % every == 0 or mark not in RESTARTS:
            feed.stretch(data, begun, start, end, thorough)
            begun = end
    return begun


def _is_idle(stretches: list[tuple[int, int, int]]) -> bool:
    """Whether the last restart mark is in order, with nothing behind it: some cameras end the last interval too."""
    (_, _, mark), (start, until, following) = stretches[-2:]
    return mark == 0xD0 + (len(stretches) - 2) % 8 and following not in RESTARTS and start == until


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


def for_decoder(file: BinaryIO) -> tuple[BinaryIO, bool]:
    """Returns what a decoder is to see of a picture's file, from its begin, and whether frames of a PNG were left out.

    Raises Unread for a JPEG or a PNG of more than MAX_HEADERS segments or chunks in front of its image data, or of
    MAX_HEADER_BYTES, or that says too often how it is turned. Other kinds are passed by.
    """
    head = file.read(8)
    try:
        if head == SIGNATURE:
            shown = Shown(file)
            return io.BufferedReader(shown), shown.frames
        if head[:3] == b"\xff\xd8\xff":
            return io.BufferedReader(ShownJpeg(file)), False
    finally:
        file.seek(0)
    return file, False


class _Feed:
    """A decoder, and the bytes that it has been given and has not used."""

    def __init__(self, decode: Decode) -> None:
        self.decode, self.waiting, self.done = decode, b"", False

    def __call__(self, data: bytes) -> int:
        """Gives bytes; returns how many the decoder has not used."""
        for at in range(0, max(len(data), 1), PIECE):
            if self.done:
                return 0
            self.waiting += data[at : at + PIECE]
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
        """Reads a header; raises Unread for a kind that is not read."""
        if code in OTHER_FRAMES:
            kind = "arithmetic-coded" if code in ARITHMETIC else "lossless or hierarchical"
            raise Unread(f"it is a JPEG of a rare kind ({kind}); read are {', '.join(FRAMES.values())} ones")
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
