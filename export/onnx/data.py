"""The external data of an ONNX model: one file beside it, written weight by weight, nothing of it held in memory.

Each weight begins at a multiple of 4,096 bytes, so that a runtime can map it instead of reading it (onnx's
ExternalData.md; 64 KiB on Windows, where onnxruntime then reads). Weights that several ops share lie there once.
It knows no graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

ALIGNMENT = 4096


class DataFile:
    """The data file of one model, in the making; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name  # how the model refers to it: beside itself, never by a path
        self._handle: BinaryIO = path.open("xb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._handle.close()

    def add(self, size: int, pieces: Iterable[bytes]) -> int:
        """Writes `size` bytes that come in pieces and returns where they begin; RuntimeError for another number."""
        self._handle.write(bytes(-self._handle.tell() % ALIGNMENT))
        start = self._handle.tell()
        written = sum(self._handle.write(piece) for piece in pieces)
        if written != size:
            raise RuntimeError(f"{self.name}: {written} bytes given for a weight, expected {size}")
        return start
