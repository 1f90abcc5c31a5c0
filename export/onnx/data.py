"""The external data of an ONNX model: one file beside it, written weight by weight, nothing of it held in memory.

Each weight begins at a multiple of 4,096 bytes, so that a runtime can map it instead of reading it (onnx's
ExternalData.md; 64 KiB on Windows, where onnxruntime then reads). Weights that several ops share lie there once, and so
do those that several models share: the encoder at two image sizes has one data file.
It knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

ALIGNMENT = 4096


class DataFile:
    """The data file of one model or of several, in the making; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name  # how the model refers to it: beside itself, never by a path
        self._places: dict[str, int] = {}
        self._handle: BinaryIO = path.open("xb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._handle.close()

    def place(self, name: str, size: int, pieces: Callable[[], Iterable[bytes]]) -> int:
        """Returns where the weight of that name begins; writes its `size` bytes unless an earlier model has.

        Raises RuntimeError where the pieces have another number of bytes.
        """
        if name not in self._places:
            self._places[name] = self._add(name, size, pieces())
        return self._places[name]

    def _add(self, name: str, size: int, pieces: Iterable[bytes]) -> int:
        self._handle.write(bytes(-self._handle.tell() % ALIGNMENT))
        start = self._handle.tell()
        written = sum(self._handle.write(piece) for piece in pieces)
        if written != size:
            raise RuntimeError(f"{self.name}: {written} bytes given for {name}, expected {size}")
        return start
