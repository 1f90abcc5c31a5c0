"""Pictures in corpus/pictures/: each was once taken wrongly, refused wrongly, or filled in; what must become of it.

Of a PNG that is read the pixels are known to the bit, as CRC-32 of its RGB bytes; JPEG decoders may differ by a shade.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile_pictures import outcome

CORPUS = Path(__file__).parent / "corpus" / "pictures"
MOST = 150_000  # bytes of them all
PLAIN = (60, 40, 0x00F3FB8D)  # one colour, whatever stands beside its data
PHOTO = (48, 32, None)
READ: dict[str, tuple[int, int, int | None]] = {
    "16-bits-of-which-8-read-as-the-clear-colour.png": (4, 3, 0x35DFB45E),
    "a-clear-colour-behind-its-data.png": PLAIN,
    "a-clear-colour-with-bits-above-its-8.png": (9, 7, 0xA1D40D42),
    "a-comment-of-1.4-mb.png": PLAIN,
    "a-frame-that-it-is-not-in.png": PLAIN,
    "a-profile-of-1.5-mb.png": PLAIN,
    "a-restart-mark-before-the-end.jpg": PHOTO,
    "a-restart-mark-behind-every-scan.jpg": PHOTO,
    "a-second-header.png": PLAIN,
    "a-second-palette.png": PLAIN,
    "a-text-called-bbox.png": PLAIN,
    "a-text-called-interlace.png": PLAIN,
    "a-text-called-transparency.png": PLAIN,
    "a-text-called-xmp.png": PLAIN,
    "exif-in-2-segments-and-an-index-that-lies.jpg": (32, 48, None),
    "fill-bytes-before-the-end.jpg": PHOTO,
    "one-colour-of-16-bits-clear-woven.png": (9, 7, 0x7B197069),
    "one-colour-of-16-bits-clear.png": (9, 7, 0x7B197069),
    "one-grey-of-16-bits-clear.png": (9, 7, 0x324E25DF),
    "one-grey-of-2-bits-clear.png": (9, 7, 0x03712D3F),
    "one-grey-of-4-bits-clear.png": (9, 7, 0x5FBEDAEE),
    "turned-by-hexadecimal-exif-behind-its-data.png": (40, 60, PLAIN[2]),
    "turned-by-xmp.png": (40, 60, PLAIN[2]),
    "woven-1-bit.png": (21, 13, 0x8240E851),
    "woven-16-bits-with-alpha.png": (11, 9, 0x77285D53),
    "woven-palette-of-4-bits.png": (21, 13, 0xDD80124E),
}
REFUSED = {
    "20,000-square.png": "400000000 pixels",
    "a-canvas-of-16,384-square.webp": "268435456 pixels",
    "a-chunk-that-claims-2-gb.png": "it ends within a chunk",
    "a-restart-mark-out-of-order.jpg": "1 restart marks are expected in order",
    "another-checksum.png": "another checksum",
    "arithmetic-coded.jpg": "is not read: it is a JPEG of a rare kind (arithmetic-coded)",
    "cut-and-ended.jpg": "its image data ends early",
    "exif-65-times.png": "it says how it is turned in over 64 chunks",
    "exif-in-65-segments-behind-junk.jpg": "it says how it is turned in over 64 segments",
    "half-of-the-last-interval.jpg": "its image data ends early",
    "hierarchical.jpg": "is not read: it is a JPEG of a rare kind (lossless or hierarchical)",
    "no-format-that-is-read.avif": "is an AVIF picture, which is not read; expected JPEG, PNG, WebP or HEIC",
    "no-format-that-is-read.gif": "is a GIF file, which is not read; expected JPEG, PNG, WebP or HEIC",
    "rows-missing-of-16-bits-with-a-clear-colour.png": "ends after 275 of 385 bytes",
    "rows-missing-woven.png": "ends after 175 of 203 bytes",
    "ten-times-as-tall.jpg": "its image data ends early",
    "text-for-turning-that-unpacks-to-8-mb.png": "its Raw profile type exif unpacks to over 1,048,576 bytes",
    "two-restart-marks-before-the-end.jpg": "1 restart marks are expected in order",
    "without-its-last-scan.jpg": "its scans lack 63 of 192 coefficients",
    "without-its-plugin.heic": "its plugin is not installed; install it with `pip install pillow-heif`",
}


def test_what_must_become_of_each_is_known() -> None:
    files = list(CORPUS.iterdir())
    assert {file.name for file in files} == READ.keys() | REFUSED.keys()
    assert sum(file.stat().st_size for file in files) < MOST


@pytest.mark.parametrize("name", READ)
def test_what_is_whole_is_read(name: str) -> None:
    pixels, said = outcome(CORPUS / name)
    width, height, sum_of_all = READ[name]
    assert pixels is not None, said
    assert pixels.shape == (height, width, 3)
    assert sum_of_all is None or zlib.crc32(np.ascontiguousarray(pixels)) == sum_of_all


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pixels, said = outcome(CORPUS / name)
    assert pixels is None
    assert said.startswith(str(CORPUS / name))
    assert REFUSED[name] in said, said
