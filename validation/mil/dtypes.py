"""The element types of MIL, and what each becomes in protobuf, weight files, numpy and torch.

One table, `DTYPES`, is the only place that knows them. Types narrower than a byte are unpacked into bytes when they
are read; uint16 and uint32 are held in the next wider signed torch type, whose kernels are complete, and return to
their own type in numpy. Sources: coremltools' MIL.proto (DataType) and MILBlob's BlobDataType (mil blob storage).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastvlm.errors import PackageError


@dataclass(frozen=True)
class DType:
    """One MIL element type.

    `proto` is its number in MIL.proto, `blob` its number in weight files (None: never stored there), `bits` its width
    when packed, `numpy` and `torch` the types that hold its values here.
    """

    name: str
    proto: int
    blob: int | None
    bits: int
    numpy: np.dtype
    torch: torch.dtype

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value of an integer type (bool: 0 and 1), at its width when packed."""
        if self.name == "bool":
            return 0, 1
        signed = self.numpy.kind == "i"
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if signed else (0, (1 << self.bits) - 1)

    @property
    def is_float(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.torch.is_floating_point


def _row(name: str, proto: int, blob: int | None, bits: int, numpy: type, held: torch.dtype) -> DType:
    return DType(name, proto, blob, bits, np.dtype(numpy), held)


DTYPES: tuple[DType, ...] = (
    _row("bool", 1, None, 8, np.bool_, torch.bool),
    _row("fp16", 10, 1, 16, np.float16, torch.float16),
    _row("fp32", 11, 2, 32, np.float32, torch.float32),
    _row("fp64", 12, None, 64, np.float64, torch.float64),
    _row("int8", 21, 4, 8, np.int8, torch.int8),
    _row("int16", 22, 6, 16, np.int16, torch.int16),
    _row("int32", 23, 14, 32, np.int32, torch.int32),
    _row("int64", 24, None, 64, np.int64, torch.int64),
    _row("int4", 25, 8, 4, np.int8, torch.int8),
    _row("uint8", 31, 3, 8, np.uint8, torch.uint8),
    _row("uint16", 32, 7, 16, np.uint16, torch.int32),
    _row("uint32", 33, 15, 32, np.uint32, torch.int64),
    _row("uint64", 34, None, 64, np.uint64, torch.int64),
    _row("uint4", 35, 11, 4, np.uint8, torch.uint8),
    _row("uint2", 36, 10, 2, np.uint8, torch.uint8),
    _row("uint1", 37, 9, 1, np.uint8, torch.uint8),
    _row("uint6", 38, 13, 6, np.uint8, torch.uint8),
    _row("uint3", 39, 12, 3, np.uint8, torch.uint8),
)

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_PROTO = {dtype.proto: dtype for dtype in DTYPES}
# MIL spells some types in full in string parameters such as cast's `dtype`.
_LONG_NAMES = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "float": "fp32", "double": "fp64"}


def dtype_named(name: str) -> DType:
    """The type that a string parameter such as cast's `dtype` names; PackageError for a name that is none."""
    found = BY_NAME.get(_LONG_NAMES.get(name, name))
    if found is None:
        raise PackageError(f"unknown element type {name!r}; known: {', '.join(BY_NAME)}")
    return found


def unpack(packed: np.ndarray, bits: int, count: int, signed: bool) -> np.ndarray:
    """Spread `count` values of `bits` bits each, lowest bits first, into one byte each.

    packed: uint8 (ceil(count * bits / 8),) -> int8 or uint8 (count,). Source: MILBlob's sub-byte storage.
    """
    if bits in (4, 6):
        values = (_nibbles(packed) if bits == 4 else _sixes(packed)).reshape(-1)[:count]
    else:
        stream = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
        values = (stream * (1 << np.arange(bits)).astype(np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return values
    wide = values.astype(np.int16)
    wide[values >= 1 << (bits - 1)] -= 1 << bits
    return wide.astype(np.int8)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Both halves of every byte, the low one first: (n,) -> (n, 2). Thirty times as fast as bit by bit."""
    values = np.empty((len(packed), 2), np.uint8)
    np.bitwise_and(packed, 15, out=values[:, 0])
    np.right_shift(packed, 4, out=values[:, 1])
    return values


def _sixes(packed: np.ndarray) -> np.ndarray:
    """Four values of every three bytes, those of a last, shorter three filled up: (n,) -> (⌈n / 3⌉, 4)."""
    whole = np.zeros(-(-len(packed) // 3) * 3, np.uint8)
    whole[: len(packed)] = packed
    first, second, third = whole.reshape(-1, 3).T
    return np.stack((first & 63, first >> 6 | (second & 15) << 2, second >> 4 | (third & 3) << 4, third >> 2), 1)
