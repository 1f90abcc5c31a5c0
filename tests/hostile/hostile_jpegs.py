"""JPEGs changed marker by marker: restart marks in front of the end, kinds that are rare, segments that abound."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_chunks import EXIF, XMP
from hostile_pictures import Pixels, equal, photo, refused, saved, truth, whole
from ordeal import Case
from PIL import Image

MARKS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]
END = b"\xff\xd9"
JUNK = b"\xff\xfe\0\2\0junk"  # behind a comment
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
ARITHMETIC = b"\xff\xcc\0\4\0\x10"  # a segment of conditions, as such files have


def ended(way: str, *steps: int, behind: bytes = b"") -> bytes:
    """With restart marks in front of its end, each so many steps behind the last one in order."""
    data = whole(way)
    last = sum(data[data.index(b"\xff\xda") :].count(mark) for mark in MARKS) - 1
    numbers = list(itertools.accumulate(steps, initial=last))[1:]
    return data[:-2] + b"".join(MARKS[number % 8] for number in numbers) + behind + END


def half_the_last(way: str) -> bytes:
    """With half of the last interval, and a mark in order behind that."""
    data = whole(way)
    at = max(data.rindex(mark) for mark in MARKS if mark in data)
    return data[: (at + len(data)) // 2] + MARKS[(data[at + 1] - 0xD0 + 1) % 8] + END


@functools.cache
def woven() -> bytes:
    """A progressive JPEG with restart marks, which Pillow writes."""
    return saved(photo(), "JPEG", progressive=True, restart_marker_rows=1, quality=90)


def each_scan_ended() -> bytes:
    """The same with a restart mark in order behind the last interval of every scan."""
    out, rest = b"", woven()
    while (at := rest.find(b"\xff\xda")) >= 0:
        out, rest = out + rest[: at + 2], rest[at + 2 :]
        place = next(at for at in range(len(rest)) if rest[at] == 0xFF and rest[at + 1] not in (0, *range(0xD0, 0xD8)))
        count = sum(rest[:place].count(mark) for mark in MARKS)
        out, rest = out + rest[:place] + MARKS[count % 8], rest[place:]
    return out + rest


def with_segments(way: str, more: bytes, place: bytes = b"") -> bytes:
    """With segments behind the beginning, or in front of the last marker of a kind."""
    data = whole(way)
    at = data.rindex(place) if place else 2
    return data[:at] + more + data[at:]


def of_kind(code: int, more: bytes = b"") -> bytes:
    data = whole("jpeg").replace(b"\xff\xc0", bytes((0xFF, code)), 1)
    at = data.index(b"\xff\xda")
    return data[:at] + more + data[at:]


def segment(code: int, count: int) -> bytes:
    return bytes((0xFF, code)) + (count + 2).to_bytes(2) + bytes(count)


def application(code: int, body: bytes) -> bytes:
    return bytes((0xFF, code)) + (2 + len(body)).to_bytes(2) + body


def exif(orientation: int, more: int = 0) -> bytes:
    """A segment that says how the picture is turned, and so many bytes beside it."""
    return application(0xE1, b"Exif\0\0" + EXIF.replace(b"\0\x06\0\0", bytes((0, orientation, 0, 0))) + bytes(more))


def plain(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


TAKEN: dict[str, Callable[[], tuple[bytes, Pixels]]] = {
    "a mark before the end": lambda: (ended("restarts", 1), truth("restarts")),
    "a mark before the end, dense": lambda: (ended("dense", 1), truth("dense")),
    "a mark before the end, then fill": lambda: (ended("restarts", 1, behind=b"\xff" * 9), truth("restarts")),
    "a mark behind every scan": lambda: (each_scan_ended(), plain(woven())),
    "a profile of 1.5 MB": lambda: (saved(photo(), "JPEG", quality=90, icc_profile=bytes(1_500_000)), truth("jpeg")),
    "9,000 comments": lambda: (with_segments("jpeg", segment(0xFE, 0) * 9000), truth("jpeg")),
    "60 MiB of segments": lambda: (with_segments("jpeg", segment(0xE3, 65_533) * 960), truth("jpeg")),
    "64 segments of EXIF": lambda: (with_segments("jpeg", exif(1) * 64), truth("jpeg")),
    "turned by EXIF behind junk": lambda: (with_segments("jpeg", JUNK + exif(6)), np.rot90(truth("jpeg"), -1)),
    "turned by XMP": lambda: (with_segments("jpeg", application(0xE1, XMP_HEAD + XMP)), np.rot90(truth("jpeg"), -1)),
    "an index of previews that lies": lambda: (
        with_segments("jpeg", application(0xE2, b"MPF\0MM\0*lies")), truth("jpeg"),
    ),
    "9,000 comments between scans": lambda: (
        with_segments("progressive", segment(0xFE, 0) * 9000, b"\xff\xda"), truth("progressive"),
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "two marks before the end": (lambda: ended("restarts", 1, 1), "restart marks"),
    "a mark before the end, not in order": (lambda: ended("restarts", 2), "restart marks"),
    "a mark before the end, and a byte": (lambda: ended("restarts", 1, behind=b"\x15"), "restart marks"),
    "a mark before the end, without an interval": (lambda: ended("jpeg", 1), "restart marks"),
    "a mark before the end of a cut one": (lambda: half_the_last("restarts"), "ends early"),
    "a mark in the last interval's place": (
        lambda: ended("restarts")[: ended("restarts").rindex(MARKS[5]) + 2] + MARKS[6] + END, "ends early",
    ),
    "without its last scan": (
        lambda: whole("progressive")[: whole("progressive").rindex(b"\xff\xda")] + END, "coefficients",
    ),
    "marks by the million": (lambda: ended("restarts", *[1] * 1_000_000), "restart marks"),
    "arithmetic-coded": (lambda: of_kind(0xC9, ARITHMETIC), "of a rare kind (arithmetic-coded)"),
    "arithmetic-coded, progressive": (lambda: of_kind(0xCA, ARITHMETIC), "of a rare kind (arithmetic-coded)"),
    "lossless": (lambda: of_kind(0xC3), ""),
    "hierarchical": (lambda: of_kind(0xC5), "of a rare kind (lossless or hierarchical)"),
    "10,001 comments": (lambda: with_segments("jpeg", segment(0xFE, 0) * 10_001), "over 10,000 headers"),
    "65 MiB of segments": (lambda: with_segments("jpeg", segment(0xE3, 65_533) * 1041), "bytes of metadata"),
    "EXIF in 65 segments": (lambda: with_segments("jpeg", exif(1) * 65), "turned in over 64 segments"),
    "EXIF in 1,000 segments of 64 KB": (
        lambda: with_segments("jpeg", exif(1, 65_000) * 1000), "turned in over 64 segments",
    ),
    "EXIF in 1,000 segments of 64 KB behind junk": (
        lambda: with_segments("jpeg", JUNK + exif(1, 65_000) * 1000), "turned in over 64 segments",
    ),
    "2 MB of tables": (
        lambda: with_segments("jpeg", application(0xDB, (b"\0" + b"\1" * 64) * 1000) * 31), "bytes of tables",
    ),
    "comments by the million between scans": (
        lambda: with_segments("progressive", segment(0xFE, 0) * 3_000_000, b"\xff\xda"), "over 10,000 headers",
    ),
    "marks by the million between scans": (
        lambda: with_segments("progressive", segment(0xFE, 0) + MARKS[0] * 3_000_000, b"\xff\xda"),
        "over 10,000 headers",
    ),
}  # fmt: skip


def jpegs(folder: Path) -> list[Case]:
    """Files that cameras write, read to the bit; and those that only resemble them, refused."""
    path = folder / "changed.jpg"
    taken = [(name, functools.partial(lambda make: equal(path, *make()), make)) for name, make in TAKEN.items()]
    return taken + [
        (name, functools.partial(lambda make, words: refused(path, make(), words), *how))
        for name, how in REFUSED.items()
    ]
