"""Codes as the weight file holds them: lowest bits first, without gaps (MILBlob's sub-byte storage).

A weight is packed block of rows by block of rows, so each block must fill whole bytes: its number of codes times their
bits is a multiple of 8. All schemes see to that: int4's rows have a multiple of 32 codes, a palette's blocks 32 rows.
Only the last block, or a whole small table, may end inside a byte, which zeros fill up.
It knows no programs and writes no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BLOB_DTYPES = {"fp16": 1, "int8": 4, "int4": 8, "uint4": 11, "uint6": 13}  # MILBlob's BlobDataType


def padding_bits(count: int, bits: int) -> int:
    """Returns how many bits of the last byte `count` codes of `bits` bits leave unused."""
    return -count * bits % 8


def pack(codes: Tensor, bits: int) -> bytes:
    """Packs codes (...) int8 or uint8, in order, into ceil(count · bits / 8) bytes; bits: 4, 6 or 8."""
    flat: NDArray[np.uint8] = codes.contiguous().reshape(-1).numpy().view(np.uint8)
    if bits == 8:
        return flat.tobytes()
    group = {4: 2, 6: 4}[bits]  # codes that fill whole bytes
    size = -(-flat.size * bits // 8)
    if flat.size % group:
        flat = np.pad(flat, (0, -flat.size % group))
    parts = flat.reshape(-1, group)
    return (_nibbles(parts) if bits == 4 else _sixes(parts)).tobytes()[:size]


def _nibbles(parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 2) -> (N,): the first code in the low half; a signed code keeps its low four bits."""
    return ((parts[:, 0] & 15) | (parts[:, 1] << 4)).astype(np.uint8, copy=False)


def _sixes(parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 4) -> (N, 3)."""
    a, b, c, d = parts.T
    return np.stack([a | (b << 6), (b >> 2) | (c << 4), (c >> 4) | (d << 2)], 1)
