"""Small copies of the pictures for a report: upright, without metadata, as base64; a build never holds a user's photo.

The more pictures there are, the smaller the copies, and beyond `MOST` none is made, so that a report stays a page.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from fastvlm_ref.image import open_image

FEW, MOST = 6, 24
LARGE, SMALL = 480, 240  # pixels of the longer side
QUALITY = 82
TYPES = ("image/png", "image/jpeg")


def embedded(named: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Returns every picture as the document has it: name, pixels of the copy, media type and base64 data.

    data is None for those beyond `MOST`. Raises ImageError where a file is no picture any more.
    """
    side = LARGE if len(named) <= FEW else SMALL
    copies = [_copy(name, path, side) for name, path in named[:MOST]]
    none = {"width": None, "height": None, "type": None, "data": None}
    return copies + [{"name": name, **none} for name, _ in named[MOST:]]


def _copy(name: str, path: Path, side: int) -> dict[str, Any]:
    picture = open_image(path)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind, data = min((_saved(picture, kind) for kind in TYPES), key=lambda saved: len(saved[1]))
    return {
        "name": name, "width": picture.width, "height": picture.height, "type": kind,
        "data": base64.b64encode(data).decode("ascii"),
    }  # fmt: skip


def _saved(picture: Image.Image, kind: str) -> tuple[str, bytes]:
    into = BytesIO()
    if kind == "image/png":
        picture.save(into, "PNG", optimize=True)
    else:
        picture.save(into, "JPEG", quality=QUALITY, optimize=True)
    return kind, into.getvalue()
