"""Ways in which a safetensors header can lie, by name, and what the sentence about each must hold."""

from __future__ import annotations

import json
from typing import Any

from safetensors_bytes import entry
from safetensors_bytes import with_header as raw

from fastvlm_ref.checkpoint.header import HEADER_LIMIT, METADATA_LIMIT, NAME_LIMIT, TENSOR_LIMIT


def one(*given: Any, data: bytes = b"\0" * 8, **more: Any) -> bytes:
    """Returns a file of one tensor, which makes these claims."""
    return raw({"a": entry(*given, **more)}, data)


def text(content: bytes) -> bytes:
    """Returns a file whose header is this text, with the data of one tensor."""
    return raw(content, b"\0" * 8)


GOOD = json.dumps(entry()).encode()
FULL = HEADER_LIMIT - 100

LIES: dict[str, tuple[bytes, str]] = {
    "no byte": (b"", "holds 0 bytes"),
    "half a length": (b"\x02\0\0", "holds 3 bytes"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "a header of 8 MiB and one byte": (raw(b"{}", length=HEADER_LIMIT + 1), "at most"),
    "a length of all ones": (b"\xff" * 64, "at most"),
    "a length with its sign bit": (b"\0" * 7 + b"\x80" + b"{}", "at most"),
    "a header beyond the end": (raw(b"{}", length=1000), "truncated"),
    "a header one byte beyond the end": (raw(b"{}", length=3), "truncated"),
    "a header of no byte": (raw(b""), "does not begin with {"),
    "no JSON": (raw(b"{]"), "not JSON"),
    "half a document": (raw(b'{"a":'), "not JSON"),
    "two documents": (raw(b"{}{}"), "not JSON"),
    "a comment": (raw(b"{}//"), "not JSON"),
    "no UTF-8": (raw(b'{"\xff":1}'), "not JSON"),
    "UTF-16": (raw("{}".encode("utf-16")), "does not begin with {"),
    "a byte order mark": (raw(b"\xef\xbb\xbf{}"), "does not begin with {"),
    "blanks before it": (text(b'  {"a":' + GOOD + b"}"), "does not begin with {"),
    "a list": (raw(b"[]"), "does not begin with {"),
    "a text": (raw(b'"{}"'), "does not begin with {"),
    "nesting without end": (raw(b'{"a":' * 90_000), "not JSON"),
    "lists without end": (raw(b'{"a":' + b"[" * 90_000), "not JSON"),
    "brackets by the million": (raw(b'{"a":[' + b"[]," * (FULL // 3) + b"0]}"), "brackets"),
    "numbers by the million": (raw(b'{"a":[' + b"0," * (FULL // 2) + b"0]}"), "lacks dtype"),
    "a number of 5,000 digits": (one(shape=[0], offsets=[0, 0], data=b"").replace(b"[0]", b"9" * 5000), "not"),
    "a tensor named twice": (text(b'{"a":' + GOOD + b',"a":' + GOOD + b"}"), "twice"),
    "a key named twice": (text(b'{"a":' + GOOD[:-1] + b',"dtype":"F32"}}'), "twice"),
    "metadata named twice": (text(b'{"__metadata__":{},"__metadata__":{},"a":' + GOOD + b"}"), "twice"),
    "no dtype": (raw({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "lacks dtype"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8), "lacks dtype"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "lacks dtype"),
    "a key too many": (one(code="import os"), "'code'"),
    "a number for a tensor": (raw({"a": 3}), "lacks dtype"),
    "nothing for a tensor": (raw({"a": None}), "lacks dtype"),
    "an unknown dtype": (one("F12"), "'F12'"),
    "a dtype of megabytes": (one("F" * 1_000_000), "has dtype 'FFFF"),
    "a dtype that is a list": (one(["F32"]), "has dtype ['F32']"),
    "a negative axis": (one(shape=[-2]), "shape [-2]"),
    "a broken axis": (one(shape=[2.0]), "shape [2.0]"),
    "an axis that is a truth": (one(shape=[True, 2]), "shape [True, 2]"),
    "an axis that is a text": (one(shape=["2"]), "shape ['2']"),
    "nine axes": (one(shape=[1] * 8 + [2]), "at most 8"),
    "a shape that is no list": (one(shape={"0": 2}), "shape {'0': 2}"),
    "a product of 80 bits": (one(shape=[2**40, 2**40]), "needs"),
    "a product that wraps to the right one": (one(shape=[2**62, 4, 2, 2]), "needs"),
    "an axis of 64 bits beside a 0": (one(shape=[0, 2**63], offsets=[0, 0], data=b""), "whole numbers"),
    "an axis of 4,000 digits beside a 0": (one(shape=[0, 10**4000], offsets=[0, 0], data=b""), "13,288 bits"),
    "offsets backwards": (one(offsets=[8, 0]), "begin <= end"),
    "an offset below 0": (one(offsets=[-8, 0]), "begin <= end"),
    "one offset": (one(offsets=[8]), "begin <= end"),
    "three offsets": (one(offsets=[0, 4, 8]), "begin <= end"),
    "offsets of 64 bits": (one(shape=[2], offsets=[2**64, 2**64 + 8]), "begin <= end"),
    "broken offsets": (one(offsets=[0.0, 8.0]), "begin <= end"),
    "bytes that the shape does not need": (one(offsets=[0, 4]), "needs 8 bytes"),
    "data that is not there": (one(data=b"\0" * 4), "truncated"),
    "two on the same bytes": (raw({"a": entry(), "b": entry()}, b"\0" * 8), "overlaps"),
    "one on half of another": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "overlaps"),
    "an empty one inside another": (raw({"a": entry(), "b": entry("F32", [0], (4, 4))}, b"\0" * 8), "overlaps"),
    "a hole": (raw({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "leaves 4 bytes"),
    "a hole before the first": (one(offsets=[4, 12], data=b"\0" * 12), "leaves 4 bytes"),
    "bytes behind the last": (one(data=b"\0" * 9), "1 bytes after"),
    "a programme and no tensor": (raw({}, b"\x7fELF"), "4 bytes after"),
    "tensors by the ten thousand": (
        raw({str(number): entry("U8", [0], (0, 0)) for number in range(TENSOR_LIMIT + 1)}), "20,001 tensors",
    ),
    "names by the hundred thousand": (raw(b"{" + b",".join(b'"%d":0' % n for n in range(700_000)) + b"}"), "tensors"),
    "metadata that is a number": (raw({"__metadata__": 3, "a": entry()}, b"\0" * 8), "__metadata__ 3"),
    "metadata with a list": (raw({"__metadata__": {"a": ["b"]}, "a": entry()}, b"\0" * 8), "names with texts"),
    "metadata of megabytes": (
        raw({"__metadata__": {"a": "b" * METADATA_LIMIT}, "a": entry()}, b"\0" * 8), "characters; save it",
    ),
    "no name": (raw({"": entry()}, b"\0" * 8), "a name that is empty"),
    "a name that a terminal obeys": (raw({"\x1b[2J": entry()}, b"\0" * 8), "not printable"),
    "a name with a zero": (raw({"a\0b": entry()}, b"\0" * 8), "not printable"),
    "half a character for a name": (text(b'{"\\ud800":' + GOOD + b"}"), "not printable"),
    "a name written backwards": (raw({"a\u202eb": entry()}, b"\0" * 8), "not printable"),
    "a name of 513 letters": (raw({"a" * (NAME_LIMIT + 1): entry()}, b"\0" * 8), "more than 512"),
    "a name of megabytes": (raw({"module." * 1_000_000: entry()}, b"\0" * 8), "more than 512"),
}  # fmt: skip
