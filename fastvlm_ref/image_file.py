"""A picture's file: which kinds are read, how large they may be, and whether all of the picture is in it.

Notable choices:
- JPEG, PNG, WebP, and HEIC where its plugin is installed: what phones and pages hold. Any other kind is named by its
  first bytes and refused; each decoder more is one that strangers' bytes reach, and Pillow takes cut files of most;
- a file is opened once, and sizes are read from its header before a byte is decoded;
- whether a picture is whole, `fastvlm.picture_files` tells.
It does not know modes, orientation, or what the picture is for.
"""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from fastvlm.errors import ImageError
from fastvlm.paths import open_followed
from fastvlm.picture_files import MAX_FILE_BYTES, for_decoder
from fastvlm.png_files import Unread
from fastvlm.quoting import one_line

MAX_PIXELS = 50_000_000  # of the header, before a byte is decoded: 200 MB in Pillow's memory
MAX_SIDE = 30_000  # padding makes a square of the longest side: its cost grows with side², 5 s at this limit
FORMATS = ("JPEG", "PNG", "WEBP")
EXPECTED = "JPEG, PNG, WebP or HEIC"
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
SIGNATURES = {  # first bytes of what is read, then of what people have beside it
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF", b"MM\0+": "BigTIFF", b"BM": "BMP", b"8BPS": "Photoshop", b"%PDF": "PDF", b"%!PS": "PostScript",
    b"\0\0\0\x0cjP": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL": "JPEG XL", b"\0\0\1\0": "ICO", b"icns": "ICNS", b"<svg": "SVG", b"<?xml": "XML",
}  # fmt: skip
CONVERT = (
    'save it as PNG or JPEG, for example with: python -c "from PIL import Image; '
    "Image.open('IN').convert('RGB').save('OUT.png')\""
)


@contextmanager
def opened(path: Path, max_pixels: int, notes: list[str]) -> Iterator[tuple[ImageFile.ImageFile, BinaryIO]]:
    """Yields (a picture that is not decoded yet, its file), for a header within the limits; whatever fails is named.

    Raises ImageError. What Pillow warns of, of damaged metadata mostly, is added to `notes`.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, it takes any text
        found = "no file" if os.path.exists(path) else "not there"
        raise ImageError(f"{path} is {found}; expected a picture ({EXPECTED})")
    with _naming(path, max_pixels), open_followed(path) as file:
        kind = _kind(path, file)
        shown, frames = for_decoder(file)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with Image.open(shown, formats=[kind]) as image:
                check_size(image.size, max_pixels)
                if frames or _has_frames(image):
                    notes.append("it has several frames; the first one is used")
                yield image, file
        notes += dict.fromkeys(one_line(str(warning.message), 120) for warning in told)


def _has_frames(image: ImageFile.ImageFile) -> bool:
    """Whether an animation has more than one; a phone's MPO, which adds only a preview, opens as a JPEG of one."""
    return bool(getattr(image, "is_animated", False))


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raises ImageError for a picture (width, height) that is empty, too large or too long."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"the picture is {width}×{height} pixels; it is empty")
    if width * height > max_pixels:
        count = width * height
        raise ImageError(f"the picture has {width}×{height} = {count} pixels, at most {max_pixels} are read; shrink it")
    if max(size) > MAX_SIDE:
        raise ImageError(f"the picture is {width}×{height} pixels, at most {MAX_SIDE} a side are read; shrink it")


def said(error: Exception) -> str:
    """Returns a decoder's complaint on one line; libheif's end in a line break, and some quote the file."""
    return one_line(f"{type(error).__name__}: {error}", 120)


@contextmanager
def _naming(path: Path, max_pixels: int) -> Iterator[None]:
    """Turns whatever Pillow raises into an ImageError that names the file."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    except Unread as error:
        raise ImageError(f"{path} is not read: {error}; save it again as a plain JPEG or PNG") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a picture, or not a whole one; expected {EXPECTED}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large ({error}); at most {max_pixels} pixels are read, shrink it") from error
    except MemoryError:
        raise  # tells nothing of the file
    except Exception as error:  # decoders raise a dozen kinds on damaged files (OSError, SyntaxError, struct.error, …)
        raise ImageError(f"{path} is damaged or cut short ({said(error)}); copy it or save it again") from error


def _kind(path: Path, file: BinaryIO) -> str:
    """Returns Pillow's name for the kind of a file; raises ImageError for one that is empty, too large or not read."""
    head = file.read(64)
    bytes_ = file.seek(0, io.SEEK_END)
    file.seek(0)
    if not bytes_:
        raise ImageError(f"{path} is empty (0 bytes); expected a picture, copy it or save it again")
    if bytes_ > MAX_FILE_BYTES:
        raise ImageError(f"{path} has {bytes_:,} bytes, at most {MAX_FILE_BYTES:,} are read; shrink the picture")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _box_kind(path, head)
    found = next((kind for first, kind in SIGNATURES.items() if head.startswith(first)), None)
    if found is None:
        raise ImageError(f"{path} is not a picture of a kind that is known; expected {EXPECTED}")
    if found not in FORMATS:
        raise ImageError(f"{path} is a {found} file, which is not read; expected {EXPECTED}: {CONVERT}")
    return found


def _box_kind(path: Path, head: bytes) -> str:
    """HEIF's kind by its brands, with its plugin registered."""
    length = min(int.from_bytes(head[:4]), 64)
    brands = {head[at : at + 4] for at in (8, *range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        raise ImageError(f"{path} is an AVIF picture, which is not read; expected {EXPECTED}: {CONVERT}")
    if not brands & HEIF_BRANDS:
        raise ImageError(f"{path} is a film, or of a kind that is not known; expected {EXPECTED}")
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImageError(
            f"{path} is a HEIC picture and its plugin is not installed; install it with `pip install pillow-heif`, "
            "or save the picture as JPEG"
        ) from error
    plugin.register_heif_opener()
    return "HEIF"
