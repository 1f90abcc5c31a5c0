"""Row "images" can fail: with any one of its checks taken away, a case of it is red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_chunks import chunks, clear, cut_rows
from hostile_jpegs import jpegs
from hostile_modes import modes, noted
from hostile_pictures import bombs, damaged, large, turned
from ordeal import Case, try_all
from PIL import Image

from fastvlm import jpeg_segments, picture_files, png_files
from fastvlm_ref import image, image_file
from validation.bundle_host import picture as host

NONE = 10**12
Change = tuple[object, str, Any]


def plain_load(picture: Image.Image, *_: object) -> None:
    """Pillow's own decoding, which fills in what is missing."""
    picture.load()


def last_frame(picture: Image.Image, *_: object) -> None:
    picture.seek(getattr(picture, "n_frames", 1) - 1)
    picture.load()


def three_inks(picture: Image.Image) -> Image.Image:
    return Image.merge("RGB", picture.split()[:3]) if picture.mode == "CMYK" else picture.convert("RGB")


def some(suite: Callable[[Path], list[Case]], *words: str) -> Callable[[Path], list[Case]]:
    """The cases of a suite that are named so."""
    return lambda folder: [case for case in suite(folder) if any(word in case[0] for word in words)]


RED: dict[str, tuple[list[Change], Callable[[Path], list[Case]]]] = {
    "wholeness": ([(image, "load_whole", plain_load)], lambda folder: damaged(folder, 28)),
    "sizes": ([(image_file, "check_size", lambda *_: None)], lambda folder: bombs(folder, 5)),
    "kinds": ([(image_file, "FORMATS", ("JPEG", "PNG", "WEBP", "TIFF", "GIF"))], some(bombs, "tiff", "gif")),
    "bytes of a file": (
        [(image_file, "MAX_FILE_BYTES", NONE), (image, "load_whole", plain_load), (host, "load_whole", plain_load)],
        large,
    ),
    "orientation": ([(image, "UPRIGHT", {})], turned),
    "first frame": ([(image, "load_whole", last_frame)], noted),
    "note of frames": ([(image_file, "_has_frames", lambda _: False)], noted),
    "16 bits": ([(image, "eight_bits", lambda picture: picture.convert("RGB"))], some(modes, "I;16")),
    "alpha": ([(image, "_over_white", lambda picture: picture.convert("RGB"))], some(modes, "A", "clear")),
    "inks": ([(image, "_flat", three_inks)], some(modes, "CMYK")),
    "bits of a clear colour": ([(picture_files, "settle_clear", lambda *_: None)], clear),
    "PNG checksums": ([(png_files, "_compare", lambda *_: None)], some(bombs, "checksum")),
    "PNG rows": ([(png_files, "_png_bytes", lambda *_: 0)], cut_rows),
    "PNG chunks that are passed by": ([(png_files, "_counts", lambda *_: True)], some(chunks, "called")),
    "a second palette": ([(png_files, "_counts", lambda *_: True)], some(chunks, "a second palette")),
    "PNG chunks that turn": ([(png_files, "TEXTS", frozenset())], some(chunks, "turned by")),
    "number of chunks": ([(png_files, "MAX_CHUNKS", NONE)], some(chunks, "510,000 chunks")),
    "number of chunks before": ([(png_files, "MAX_HEADERS", NONE)], some(chunks, "10,001")),
    "number of chunks that turn": ([(png_files, "MAX_TURNING", NONE)], some(chunks, "65 times")),
    "bytes of chunks": ([(png_files, "MAX_HEADER_BYTES", NONE)], some(chunks, "palette of 65 MiB")),
    "bytes of a text": ([(png_files, "MAX_TEXT", 2**30)], some(chunks, "unpacks to 8 MB")),
    "restart marks": ([(picture_files, "check_restarts", lambda *_: None)], some(jpegs, "mark")),
    "a last mark's place": ([(picture_files, "_is_idle", lambda _: True)], some(jpegs, "mark before the end")),
    "scans": ([(picture_files, "MAX_SCANS", NONE)], some(bombs, "2,000 scans")),
    "bits of the scans": (
        [(picture_files._Frame, "check_complete", lambda _: None)], some(jpegs, "last scan"),
    ),
    "unused data": ([(picture_files, "FEW", -1)], some(bombs, "half as tall")),
    "rare kinds": ([(picture_files, "OTHER_FRAMES", set())], some(jpegs, "arithmetic", "hierarchical")),
    "number of segments": (
        [(each, "MAX_HEADERS", NONE) for each in (picture_files, jpeg_segments)], some(jpegs, "10,001"),
    ),
    "bytes of segments": ([(jpeg_segments, "MAX_HEADER_BYTES", NONE)], some(jpegs, "65 MiB")),
    "number of segments that turn": ([(jpeg_segments, "MAX_TURNING", NONE)], some(jpegs, "65 segments")),
    "bytes of tables": ([(jpeg_segments, "MAX_TABLES", NONE)], some(jpegs, "2 MB of tables")),
}  # fmt: skip


@pytest.mark.parametrize("check", RED)
def test_without_one_of_its_checks_the_row_is_red(check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, suite = RED[check]
    for change in changes:
        monkeypatch.setattr(*change)
    outcomes = try_all(suite(tmp_path))
    assert outcomes
    assert any(not outcome.held for outcome in outcomes)
