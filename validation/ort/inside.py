"""A model file with its weights inside, read past them: its message without their values, and how long each was.

onnxruntime's CoreML provider could not read external data until 2026, so that an encoder made for it holds 250 to 600
MB of weights. Such a file is walked field by field, and of a weight's `raw_data` only the length is read. What is left
is as small as any model's file, and bounded as such: the size of a file says nothing of what reading it costs.
It takes the fields apart as protobuf's encoding has them, and knows no more of ONNX than where weights are.
Source: protobuf.dev/programming-guides/encoding; onnx.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from onnx import GraphProto, ModelProto, TensorProto

from fastvlm.paths import open_plain

WEIGHTS = (ModelProto.GRAPH_FIELD_NUMBER, GraphProto.INITIALIZER_FIELD_NUMBER)  # the way to a weight
VALUES = TensorProto.RAW_DATA_FIELD_NUMBER
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is encoded; groups, 3 and 4, are in no message of onnx
FIXED = {FIXED64: 8, FIXED32: 4}
LONGEST = 10  # bytes of a varint
LARGEST = (1 << 31) - 1  # bytes of any message that protobuf takes
CUT = "it is no ONNX model, or was cut"


def read_past_weights(path: Path, size: int, most: int, fields: int) -> tuple[bytes, list[int]]:
    """Returns the message in a file of `size` bytes without values of its weights, and the bytes that each had.

    The lengths are in the order of the graph's initializers, 0 for one without `raw_data`. Raises OSError as
    `open_plain`, ValueError for a file of another size, one that is no message, or one that holds more than `most`
    bytes, or more than `fields` fields, beside its weights.
    """
    with open_plain(path) as file:
        found = file.seek(0, 2)
        if found != size or size > LARGEST:
            most_words = f"at most {LARGEST:,}" if size > LARGEST else f"the {size:,} that manifest.json says"
            raise ValueError(f"it has {found:,} bytes, expected {most_words}")
        file.seek(0)
        reader = _Reader(file, most, fields)
        return reader.message(size, WEIGHTS), reader.lengths


class _Reader:
    """Reads a file from front to back; `lengths` of the weights that it has passed."""

    def __init__(self, file: BinaryIO, most: int, fields: int) -> None:
        self._file, self._most, self._fields = file, most, fields
        self._at = self._kept = 0
        self.lengths: list[int] = []

    def message(self, end: int, way: tuple[int, ...]) -> bytes:
        """The message up to byte `end`; `way`: by which fields one gets from it to a weight, () in a weight itself."""
        made = bytearray()
        while self._at < end:
            tag = self._varint(end)
            made += _encoded(tag)
            self._count()
            if tag & 7 == BYTES:
                made += self._field(tag >> 3, end, way)
            elif tag & 7 == VARINT:
                made += _encoded(self._varint(end))
            elif tag & 7 in FIXED:
                made += self._bytes(FIXED[tag & 7], end)
            else:
                raise ValueError(CUT)
        return bytes(made)

    def _field(self, number: int, end: int, way: tuple[int, ...]) -> bytes:
        """A field that begins with its length: a message on the way to a weight, a weight's values, or any other."""
        length = self._varint(end)
        if length > end - self._at:
            raise ValueError(CUT)
        if not way and number == VALUES:
            self.lengths[-1] += length
            self._at = self._file.seek(self._at + length)
            return _encoded(0)
        if not way or number != way[0]:
            return _encoded(length) + self._bytes(length, end)
        if len(way) == 1:
            self.lengths.append(0)
        inner = self.message(self._at + length, way[1:])
        return _encoded(len(inner)) + inner

    def _count(self) -> None:
        self._fields -= 1
        if self._fields < 0:
            raise ValueError("it has too many parts beside its weights")

    def _bytes(self, count: int, end: int) -> bytes:
        """The next bytes, which count as read; ValueError where they would reach behind `end`, or be too many."""
        if count > end - self._at:
            raise ValueError(CUT)
        self._kept += count
        if self._kept > self._most:
            raise ValueError(f"it has more than {self._most:,} bytes beside its weights")
        data = self._file.read(count)
        if len(data) != count:  # it became shorter meanwhile
            raise ValueError(CUT)
        self._at += count
        return data

    def _varint(self, end: int) -> int:
        """A number in groups of seven bits, the lowest first."""
        value = 0
        for place in range(LONGEST):
            (byte,) = self._bytes(1, end)
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value
        raise ValueError(CUT)


def _encoded(value: int) -> bytes:
    """A number as a varint."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes((*made, value))
