"""A PNG writer by the specification alone: every kind and depth, all five filters, Adam7; Pillow writes few of them.

Values are what the file holds (palette indexes, 2-bit grey, 16-bit colour), not what a reader makes of them.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

Values = np.ndarray  # (height, width, channels), of as many bits as the depth says
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int, depth: int, colour: int, interlaced: bool = False) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def written(values: Values, depth: int, colour: int, *before: bytes, interlaced: bool = False) -> bytes:
    """A whole PNG; `before` are chunks between its header and its data."""
    height, width = values.shape[:2]
    data = zlib.compress(stream(values, depth, interlaced))
    head = header(width, height, depth, colour, interlaced)
    return head + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND")


def stream(values: Values, depth: int, interlaced: bool = False) -> bytes:
    """All rows, filtered in turn by each of the five filters."""
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    parts = (values[top::down, left::across] for top, left, down, across in passes)
    return b"".join(_rows(part, depth) for part in parts if part.size)


def _rows(values: Values, depth: int) -> bytes:
    step = max(1, values.shape[2] * depth // 8)  # bytes from a value to the one at its left
    out, above = b"", None
    for number, line in enumerate(values):
        row = np.frombuffer(_packed(line.reshape(-1), depth), np.uint8).astype(int)
        above = np.zeros_like(row) if above is None else above
        left, corner = (np.concatenate((np.zeros(step, int), one))[: len(row)] for one in (row, above))
        guesses = (0 * row, left, above, (left + above) // 2, _paeth(left, above, corner))
        out += bytes([number % 5]) + ((row - guesses[number % 5]) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def _packed(line: Values, depth: int) -> bytes:
    if depth >= 8:
        return line.astype(">u2" if depth == 16 else np.uint8).tobytes()
    bits = line[:, None] >> np.arange(depth - 1, -1, -1) & 1
    return np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()


def _paeth(left: Values, above: Values, corner: Values) -> Values:
    guess = left + above - corner
    ways = [np.abs(guess - one) for one in (left, above, corner)]
    first = (ways[0] <= ways[1]) & (ways[0] <= ways[2])
    return np.where(first, left, np.where(ways[1] <= ways[2], above, corner))
