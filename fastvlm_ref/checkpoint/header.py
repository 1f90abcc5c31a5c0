"""The header of a safetensors file, checked in full before one byte of data is trusted.

A file can lie in its length, its JSON, its names, its shapes and its offsets; each lie has its own sentence.
Notable choices: the format itself allows 100 MB of header, this reader 8 MiB (7B needs 0.1) and 20,000 tensors (7B,
unfused, has 1,000); tensors must lie end to end, from the first byte after the header to the last byte of the file, so
that nothing hides between them; an entry has its three keys and no other, `__metadata__` is texts alone.
It does not know what the tensors mean.
Source: the format section of huggingface/safetensors' README.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastvlm.errors import CheckpointError
from fastvlm.json_file import each_once
from fastvlm.quoting import listed, one_line, short
from fastvlm_ref.files import open_file

HEADER_LIMIT = 8 * 1024 * 1024  # bytes
TENSOR_LIMIT = 20_000
RANK_LIMIT = 8
NAME_LIMIT = 512  # characters; the longest of a real checkpoint has 120
METADATA_LIMIT = 1024 * 1024  # characters of the whole of it; trainers of adapters leave some 0.1 million
SIZE_LIMIT = 1 << 63  # of an axis, of a tensor's elements and of an offset: what 64 bits hold
BRACES_LIMIT = 100_000  # of `{` and of `[`: more than any header has, and no more than takes half a second to read
KEYS = {"dtype", "shape", "data_offsets"}
METADATA = "__metadata__"
NAMED = 160  # characters of a tensor's name in messages
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file: its name, dtype (as the file spells it), shape, and first and last byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # from the start of the file
    end: int


def read_header(path: Path) -> list[Entry]:
    """Returns the tensors of the file in the order of their bytes.

    Raises CheckpointError, naming the file, for anything that the format does not allow.
    """
    try:
        with open_file(path) as handle:
            return header_of(path, handle)
    except OSError as problem:
        raise CheckpointError(
            f"{path} cannot be read ({problem.strerror}); check the path and its permissions"
        ) from problem


def header_of(path: Path, handle: BinaryIO) -> list[Entry]:
    """As `read_header`, of a file that is open at its first byte; `path` names it in messages. OSError as it comes."""
    status = os.fstat(handle.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a file, expected safetensors")
    size = status.st_size
    length = _header_length(path, handle.read(8), size)
    data = _parse(path, handle.read(length))
    _check_metadata(path, data.pop(METADATA, {}))
    if len(data) > TENSOR_LIMIT:
        raise CheckpointError(f"{path} lists {len(data):,} tensors, at most {TENSOR_LIMIT:,} are read")
    entries = [_entry(path, name, value, 8 + length) for name, value in data.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(path, entries, 8 + length, size)
    return entries


def is_name(name: object) -> bool:
    """Tells whether a tensor may be called this: printable characters, one at least and `NAME_LIMIT` at most."""
    return isinstance(name, str) and 0 < len(name) <= NAME_LIMIT and name.isprintable()


def _header_length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise CheckpointError(
            f"{path} holds {size} bytes, expected at least the 8 of a safetensors length; fetch it again"
        )
    length = int.from_bytes(prefix, "little")
    if prefix.startswith(b"version "):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    if length > HEADER_LIMIT:
        raise CheckpointError(
            f"{path} states a header of {length} bytes, at most {HEADER_LIMIT} are read; it is no safetensors file"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is truncated: its header needs {8 + length} bytes and the file has {size}; fetch it again"
        )
    return length


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path} has a header that does not begin with {{; it is damaged or not safetensors")
    if max(raw.count(b"{"), raw.count(b"[")) > BRACES_LIMIT:
        raise CheckpointError(f"{path} has a header of more than {BRACES_LIMIT:,} brackets; it is no checkpoint's")
    try:
        data: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=each_once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as problem:
        raise CheckpointError(
            f"{path} has a header that is not JSON ({one_line(str(problem), 100)}); it is damaged or not safetensors"
        ) from problem
    return data


def _check_metadata(path: Path, found: Any) -> None:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise CheckpointError(f"{path} has {METADATA} {short(found)}, expected names with texts; it is damaged")
    if sum(len(name) + len(text) for name, text in found.items()) > METADATA_LIMIT:
        raise CheckpointError(f"{path} has {METADATA} of more than {METADATA_LIMIT:,} characters; save it without")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SIZE_LIMIT


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    where = f"{path}: tensor {short(name, NAMED)}"
    if not is_name(name):
        raise CheckpointError(
            f"{where} has a name that is empty, not printable or of more than {NAME_LIMIT} characters"
        )
    if not isinstance(value, dict) or not value.keys() >= KEYS:
        raise CheckpointError(f"{where} lacks dtype, shape or data_offsets; the header is damaged")
    if value.keys() - KEYS:
        raise CheckpointError(
            f"{where} has keys beside {', '.join(sorted(KEYS))}: {listed(sorted(value.keys() - KEYS))}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has dtype {short(dtype)}, known are {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not all(map(_whole, shape)):
        raise CheckpointError(f"{where} has shape {short(shape)}, expected at most {RANK_LIMIT} whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)) or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {short(offsets)}, expected [begin, end] with begin <= end")
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where} of shape {short(shape)} and dtype {dtype} needs {short(needed)} bytes, "
            f"its offsets {short(offsets)} hold {offsets[1] - offsets[0]}"
        )
    return Entry(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _check_layout(path: Path, entries: list[Entry], start: int, size: int) -> None:
    at = start
    for entry in entries:
        if entry.begin != at:
            kind = (
                "overlaps the tensor before it"
                if entry.begin < at
                else f"leaves {entry.begin - at} bytes before it unused"
            )
            raise CheckpointError(
                f"{path}: tensor {short(entry.name, NAMED)} {kind}; safetensors lie end to end, the file is damaged"
            )
        at = entry.end
    if at > size:
        raise CheckpointError(
            f"{path} is truncated: its tensors need {at} bytes and the file has {size}; fetch it again"
        )
    if at < size:
        raise CheckpointError(
            f"{path} has {size - at} bytes after its last tensor; it is damaged or carries something else"
        )
