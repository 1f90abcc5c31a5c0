"""A JPEG's segments in front of its image data: which of them a decoder is shown.

Notable choices:
- a decoder is shown the frame, its tables, and those segments that say how the picture is turned (EXIF, XMP) or how its
  colours are stored (JFIF, Adobe). No comment, profile, preview or other application's data: Pillow keeps each one that
  it sees, and joins EXIF segment by segment, which takes minutes over some thousands of them;
- segments are found as Pillow finds them: what stands between two of them, fill bytes and others, is not shown;
- of an MPO, which phones write, the index of its previews is not shown: the first picture is the picture.
Pixels do not come from here: libjpeg is given the file itself (`picture_files.feed_jpeg`).
"""

from __future__ import annotations

import io
from typing import BinaryIO

from fastvlm.png_files import MAX_HEADER_BYTES, MAX_HEADERS, MAX_TURNING, Unread
from fastvlm.shown_file import ShownFile

SOS, EOI, RESTARTS = 0xDA, 0xD9, range(0xD0, 0xD8)
COMMENT, APPLICATIONS = 0xFE, range(0xE0, 0xF0)
BARE = {*range(0xC0), 0xC8, *RESTARTS, 0xD8, EOI, *range(0xF0, 0xFE)}  # codes behind which Pillow expects no length
TURNING = {0xE1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")}  # what such segments begin with, by their code
COLOURS = {0xE0: (b"JFIF",), 0xEE: (b"Adobe",)}
MAX_TABLES = 2**20  # bytes of frame and tables before the image data: usual ones have 3,000, and 64 MB take Pillow 10 s
LONGEST = 32  # bytes that tell what a segment is
JUNK = 4096  # bytes that are searched for the next segment in one go


class ShownJpeg(ShownFile):
    """The segments of a JPEG that a decoder is to see, with all that follows from its first scan on.

    Raises Unread for too many segments, or bytes of them, in front of the first scan.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.end = file.seek(0, io.SEEK_END)
        self.turning, self.tables = 0, 0
        self.show(0, 2)
        place = 2
        for _ in range(MAX_HEADERS):
            file.seek(place)
            head = file.read(2)
            if len(head) < 2 or head == bytes((0xFF, EOI)):
                return
            if head == bytes((0xFF, SOS)):
                self.show(place, self.end - place)
                return
            place = self._passed(place, head)
            if place > MAX_HEADER_BYTES:
                raise Unread(f"it has over {MAX_HEADER_BYTES:,} bytes of metadata")
        raise Unread(f"it has over {MAX_HEADERS:,} headers before its image data")

    def _passed(self, place: int, head: bytes) -> int:
        """Shows what begins at `place` with two bytes, where a decoder is to see it; returns where the next begins."""
        code = head[1]
        if head[0] != 0xFF or code == 0xFF:
            junk = self.file.read(JUNK)
            found = (head[1:] + junk).find(b"\xff")
            return place + 1 + (found if found >= 0 else 1 + len(junk))
        if code in BARE:
            if code and code not in RESTARTS:
                self.show(place, 2)
            return place + 2
        start = self.file.read(2 + LONGEST)
        length = 2 + max(2, int.from_bytes(start[:2]))
        if self._counts(code, start[2 : length - 2], length):
            self.show(place, min(length, self.end - place))
        return place + length

    def _counts(self, code: int, start: bytes, length: int) -> bool:
        """Whether a decoder is to see a segment that begins so; raises Unread for too many of these."""
        if start.startswith(TURNING.get(code, ())):
            self.turning += 1
            if self.turning > MAX_TURNING:
                raise Unread(f"it says how it is turned in over {MAX_TURNING} segments")
            return True
        if code == COMMENT or (code in APPLICATIONS and not start.startswith(COLOURS.get(code, ()))):
            return False
        self.tables += length
        if self.tables > MAX_TABLES:
            raise Unread(f"it has over {MAX_TABLES:,} bytes of tables before its image data")
        return True
