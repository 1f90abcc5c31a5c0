"""A file that holds parts of another one, as a decoder is to see them: nothing is copied, the other one is read.

It does not know what the parts are: `png_files` shows chunks, `jpeg_segments` segments.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from typing import Any, BinaryIO


class ShownFile(io.RawIOBase):
    """The parts of a file that were shown (`show`), one behind the other; reads wherever others have left that file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.place, self.size = file, 0, 0
        self.starts: list[int] = []
        self.parts: list[tuple[int, int]] = []  # (where in the file, bytes)

    def show(self, place: int, length: int) -> None:
        """Adds `length` bytes of the file, from `place` on."""
        if self.parts and sum(self.parts[-1]) == place:
            self.parts[-1] = (self.parts[-1][0], self.parts[-1][1] + length)
        else:
            self.starts.append(self.size)
            self.parts.append((place, length))
        self.size += length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, base + place)
        return self.place

    def readinto(self, buffer: Any) -> int:
        """As of every raw file; reads no further than the part that it begins in."""
        number = bisect_right(self.starts, self.place) - 1
        start, (place, length) = self.starts[number], self.parts[number]
        inside = self.place - start
        if inside >= length:
            return 0
        self.file.seek(place + inside)
        data = self.file.read(min(len(buffer), length - inside))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)
