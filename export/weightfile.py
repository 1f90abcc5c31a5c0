"""weight.bin, read blob by blob and written in one fixed order, every distinct blob once.

Layout (MILBlob, storage version 2): a 64-byte file header `count, version`; each blob has 64 bytes of metadata
`<IIQQQ` = 0xDEADBEEF, dtype, bytes, offset of the values, padding bits; metadata and values start at multiples of 64.
A program names a blob by the offset of its metadata. Two blobs are the same when dtype and bytes are, or when they
are one parameter.
It does not know programs: who points where is `export.package`'s.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import BinaryIO

HEADER = struct.Struct("<II")
METADATA = struct.Struct("<IIQQQ")
SENTINEL = 0xDEADBEEF
VERSION = 2
ALIGNMENT = 64


class WeightReader:
    """The blobs of a weight file that coremltools has just written, one in memory at a time."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("rb")

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def read(self, offset: int) -> tuple[int, int, bytes]:
        """Returns dtype code, padding bits and bytes of the blob whose metadata lies at `offset`."""
        self._handle.seek(offset)
        sentinel, dtype, size, start, padding = METADATA.unpack(self._handle.read(METADATA.size))
        if sentinel != SENTINEL:
            raise RuntimeError(f"weight file: sentinel {sentinel:#x} at {offset}, expected {SENTINEL:#x}")
        self._handle.seek(start)
        return dtype, padding, self._handle.read(size)


class WeightWriter:
    """A weight file in the making; equal blobs, and one parameter of two functions, lie there once."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._places: dict[Hashable, int] = {}
        self._handle.write(bytes(ALIGNMENT))

    @property
    def count(self) -> int:
        """How many distinct blobs the file holds."""
        return len(self._places)

    def add(self, dtype: int, padding: int, data: bytes) -> int:
        """Writes a blob unless it is there already; returns the offset of its metadata."""
        key = (dtype, padding, hashlib.sha256(data).digest())
        return self._place(key, dtype, padding, len(data), lambda: iter((data,)))

    def add_parameter(
        self, name: str, dtype: int, size: int, pieces: Callable[[], Iterator[bytes]], padding: int = 0
    ) -> int:
        """`add` for a blob of `size` bytes that comes piece by piece and is known by its parameter's name.

        `pieces` is not asked where a blob of that name lies there already.
        """
        return self._place(name, dtype, padding, size, pieces)

    def holds(self, name: str) -> bool:
        """Whether the blob of a parameter's name was written."""
        return name in self._places

    def _place(self, key: Hashable, dtype: int, padding: int, size: int, pieces: Callable[[], Iterator[bytes]]) -> int:
        if key not in self._places:
            self._align()
            at = self._handle.tell()
            metadata = METADATA.pack(SENTINEL, dtype, size, at + ALIGNMENT, padding)
            self._handle.write(metadata.ljust(ALIGNMENT, b"\0"))
            written = sum(self._handle.write(piece) for piece in pieces())
            if written != size:
                raise RuntimeError(f"weight file: {written} bytes given for {key}, expected {size}")
            self._places[key] = at
        return self._places[key]

    def finish(self) -> None:
        """Pads the end and writes the header, which counts the blobs."""
        self._align()
        self._handle.seek(0)
        self._handle.write(HEADER.pack(self.count, VERSION))

    def _align(self) -> None:
        self._handle.write(bytes(-self._handle.tell() % ALIGNMENT))
