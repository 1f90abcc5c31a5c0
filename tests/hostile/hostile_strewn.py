"""PNGs of every kind by hand that are flipped, cut, short of rows, or have any chunks strewn in.

Each is refused, or gives the pixels that were drawn: what is strewn in changes nothing but how the picture lies.
"""

from __future__ import annotations

import functools
import random
import zlib
from pathlib import Path

import numpy as np
from hostile_chunks import KINDS, drawn, palette, shown
from hostile_pictures import Pixels, outcome
from ordeal import Case
from png_writer import chunk, header, stream, written

from fastvlm.errors import ImageError

WIDTH, HEIGHT = 13, 11
FOUND = (1464, 166)  # a chunk that claims 2 GB, a second palette
STREWN = (
    b"tEXt zTXt iTXt eXIf prVt acTL fcTL fdAT PLTE tRNS IHDR iCCP gAMA sBIT bKGD hIST cHRM pHYs sRGB tIME IDAT".split()
)


def strewn(folder: Path, count: int) -> list[Case]:
    path = folder / "strewn.png"
    seeds = (*FOUND, *range(count - len(FOUND)))
    return [(f"strewn {seed}", functools.partial(_run, path, seed)) for seed in seeds]


def _run(path: Path, seed: int) -> None:
    rng = random.Random(f"strewn {seed}")
    data, expected = _made(rng)
    path.write_bytes(data)
    pixels, said = outcome(path)
    if pixels is None:
        raise ImageError(said)
    assert pixels.size == expected.size, pixels.shape
    if pixels.shape == expected.shape:
        assert np.abs(pixels.astype(int) - expected).max() <= 1, "other pixels"


def _made(rng: random.Random) -> tuple[bytes, Pixels]:
    (colour, depth), woven = rng.choice(KINDS), rng.random() < 0.5
    values = drawn(colour, depth, WIDTH, HEIGHT)
    expected, before = shown(values, colour, depth), [palette(depth)] * (colour == 3)
    if colour in (0, 2) and rng.random() < 0.6:
        before.append(chunk(b"tRNS", values[3, 3].astype(">u2").tobytes()))
        expected[(values == values[3, 3]).all(-1)] = 255
    data = written(values, depth, colour, *before, interlaced=woven)
    way = rng.choice((_flipped, _cut, _strewn))
    if rng.random() < 0.25:
        rows = stream(values, depth, woven)
        kept = chunk(b"IDAT", zlib.compress(rows[: rng.randrange(len(rows))]))
        data = header(WIDTH, HEIGHT, depth, colour, woven) + b"".join(before) + kept + chunk(b"IEND")
        return data, expected
    return way(rng, data), expected


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5))):
        changed[rng.randrange(8, len(data))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(8, len(data))]


def _strewn(rng: random.Random, data: bytes) -> bytes:
    bodies = (b"", b"bbox\0a", b"gamma\0\0x", rng.randbytes(rng.randrange(40)))
    names = [name for name in STREWN if name != b"tRNS" or name in data]  # the first of these counts
    more = b"".join(chunk(rng.choice(names), rng.choice(bodies)) for _ in range(rng.randrange(1, 5)))
    at = rng.choice((data.index(b"IDAT") - 4, len(data) - 12))
    return data[:at] + more + data[at:]
