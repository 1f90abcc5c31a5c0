"""The header of a safetensors file, checked in full before one byte of data is trusted.

A file can lie in its length, its JSON, its names, its shapes and its offsets; each lie has its own sentence.
Notable choices: the format itself allows 100 MB of header, this reader 8 MiB (7B needs 0.1); tensors must lie end to
end, from the first byte after the header to the last byte of the file, so that nothing hides between them.
It does not know what the tensors mean.
Source: the format section of huggingface/safetensors' README.
"""

from __future__ import annotations

import json
import math
import os
import stat
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastvlm.errors import CheckpointError
from fastvlm_ref.files import open_file

HEADER_LIMIT = 8 * 1024 * 1024  # bytes
RANK_LIMIT = 8
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


def read_header(path: Path, file: BinaryIO | None = None) -> list[Entry]:
    """Returns the tensors of the file in the order of their bytes; `file`: the same, opened already, is left open.

    Raises CheckpointError, naming the file, for anything that the format does not allow.
    """
    try:
        with open_file(path) if file is None else nullcontext(file) as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a file, expected safetensors")
            size = status.st_size
            length = _header_length(path, handle.read(8), size)
            raw = handle.read(length)
    except OSError as problem:
        raise CheckpointError(
            f"{path} cannot be read ({problem.strerror}); check the path and its permissions"
        ) from problem
    data = _parse(path, raw)
    entries = [_entry(path, name, value, 8 + length) for name, value in data.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(path, entries, 8 + length, size)
    return entries


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
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 1000 else []
            raise CheckpointError(f"{path} names something twice in its header: {', '.join(twice) or 'many names'}")
        return found

    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as problem:
        raise CheckpointError(
            f"{path} has a header that is not JSON ({problem}); it is damaged or not safetensors"
        ) from problem
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} has a header that is {type(data).__name__}, expected a JSON object")
    return data


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(f"{where} lacks dtype, shape or data_offsets; the header is damaged")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has dtype {dtype!r}, known are {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not all(map(_whole, shape)):
        raise CheckpointError(f"{where} has shape {shape!r}, expected at most {RANK_LIMIT} whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)) or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {offsets!r}, expected [begin, end] with begin <= end")
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where} of shape {shape} and dtype {dtype} needs {needed} bytes, its offsets {offsets} "
            f"hold {offsets[1] - offsets[0]}"
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
                f"{path}: tensor {entry.name!r} {kind}; safetensors lie end to end, the file is damaged"
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
