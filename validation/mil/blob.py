"""A weight file (`weight.bin`), memory-mapped: nothing is read before it is used.

Layout (MILBlob, storage version 2): a 64-byte file header `count, version`; each blob has 64 bytes of metadata
`<IIQQQ` = 0xDEADBEEF, dtype, bytes, offset, padding bits; offset points at the raw values. A program names a blob by
the offset of its metadata. Every field is checked before a byte of the values is touched.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastvlm.errors import PackageError
from fastvlm.paths import open_plain
from validation.mil.dtypes import DType, unpack
from validation.within_memory import expect_mapped

_HEADER = struct.Struct("<II")
_METADATA = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
_METADATA_BYTES = 64
_VERSION = 2


class BlobFile:
    """Read-only view of one weight file, of `opened` where it is open already.

    Raises PackageError when the file is missing, shorter than its header, or not of storage version 2.
    """

    def __init__(self, path: Path, opened: BinaryIO | None = None):
        self.path = path
        try:
            with nullcontext(opened) if opened is not None else open_plain(path) as file:
                expect_mapped(os.fstat(file.fileno()).st_size)
                # Copy-on-write: torch warns about read-only memory, and nothing here ever writes.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise PackageError(
                f"weight file {path} cannot be opened ({error}); copy the whole package again"
            ) from error
        self._bytes = np.frombuffer(self._map, np.uint8)
        if len(self._bytes) < _METADATA_BYTES:
            raise PackageError(
                f"weight file {path} has {len(self._bytes)} bytes, its header alone needs 64; it was cut"
            )
        _, version = _HEADER.unpack_from(self._bytes.data, 0)
        if version != _VERSION:
            raise PackageError(
                f"weight file {path} has storage version {version}, expected 2; it is no Core ML weight file"
            )

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self._bytes)

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        """The values at metadata `offset`, in numpy; a view of the file unless the type is narrower than a byte.

        Raises PackageError when sentinel, dtype, size or offset contradict what the program declares.
        """
        start, size = self._locate(offset, dtype, shape)
        raw = self._bytes[start : start + size]
        count = math.prod(shape)
        if dtype.bits < 8:
            return unpack(np.asarray(raw), dtype.bits, count, signed=dtype.name.startswith("int")).reshape(shape)
        if start % dtype.numpy.itemsize:
            raw = np.array(raw)  # an unaligned view would be slow or unsupported in torch
        return np.asarray(raw).view(dtype.numpy).reshape(shape)

    def part(self, offset: int, dtype: DType, shape: tuple[int, ...], first: int, count: int) -> np.ndarray:
        """`count` of the values that `read` gives, flat, from number `first` on, which must begin a byte."""
        start, _ = self._locate(offset, dtype, shape)
        if not 0 <= first <= first + count <= math.prod(shape) or first * dtype.bits % 8:
            raise ValueError(f"values {first} to {first + count} of {list(shape)} in {dtype.bits} bits are no part")
        begin, size = start + first * dtype.bits // 8, (count * dtype.bits + 7) // 8
        raw = np.asarray(self._bytes[begin : begin + size])
        if dtype.bits < 8:
            return unpack(raw, dtype.bits, count, signed=dtype.name.startswith("int"))
        return (np.array(raw) if begin % dtype.numpy.itemsize else raw).view(dtype.numpy)

    def check(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> None:
        """Raises what `read` would raise, and reads no value."""
        self._locate(offset, dtype, shape)

    def forget(self, offset: int) -> None:
        """Gives back the memory of the whole pages of a blob that was read; its views stay valid."""
        _, _, size, start, _ = _METADATA.unpack_from(self._bytes.data, offset)
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

    def _locate(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> tuple[int, int]:
        total = len(self._bytes)
        where = f"weight file {self.path}, blob at offset {offset}"
        if offset < 0 or offset + _METADATA_BYTES > total:
            raise PackageError(f"{where}: the file ends at {total} bytes; it was cut or belongs to another program")
        sentinel, code, size, start, _ = _METADATA.unpack_from(self._bytes.data, offset)
        if sentinel != _SENTINEL:
            raise PackageError(
                f"{where}: sentinel {sentinel:#010x}, expected 0xdeadbeef; file and program do not match"
            )
        if code != dtype.blob:
            raise PackageError(f"{where}: stored dtype {code}, the program declares {dtype.name} ({dtype.blob})")
        expected = (math.prod(shape) * dtype.bits + 7) // 8
        if size != expected:
            raise PackageError(f"{where}: {size} bytes stored, {dtype.name} {list(shape)} needs {expected}")
        if start + size > total:
            raise PackageError(f"{where}: its values end at {start + size}, the file at {total} bytes; it was cut")
        return start, size
