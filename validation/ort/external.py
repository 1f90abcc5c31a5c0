"""The weights beside an ONNX file: where each tensor says its values lie, held against the files that are there.

A location is a plain name of a plain file in the model's own folder. That refuses paths and links, and also
onnxruntime's own mark for "at this address in memory", which a file could name to have any memory read. No two tensors
share bytes: a small file could otherwise stand for any number of values.
It reads sizes alone, no values.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from export.onnx.graph import BITS
from fastvlm.errors import PackageError
from fastvlm.paths import contained, is_plain

KEYS = ("location", "offset", "length", "checksum")  # of ExternalData.md; onnxruntime knows others, we write none
MOST_DIMENSIONS = 8
_BITS = {**BITS, TensorProto.BFLOAT16: 16, TensorProto.BOOL: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4}


@dataclass(frozen=True)
class Region:
    """The bytes of one tensor: from `start` up to `end` of the file of that name."""

    tensor: str
    location: str
    start: int
    end: int


def external_problems(model: Path, tensors: Iterable[TensorProto]) -> Iterator[str]:
    """What is wrong with the tensors whose values lie outside of `model`; nothing where all of them are good."""
    files: dict[str, list[Region]] = {}
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            found = _region(tensor)
            if isinstance(found, Region):
                files.setdefault(found.location, []).append(found)
            else:
                yield f"tensor {tensor.name[:60]!r} {found}"
    for location, regions in files.items():
        size = _size(model.parent, location)
        if isinstance(size, str):
            yield size
        else:
            yield from _misplaced(regions, location, size)


def _region(tensor: TensorProto) -> Region | str:
    """Where the tensor says that its bytes are, or what is wrong with what it says."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = [key[:60] for key in entries if key not in KEYS]
    if tensor.data_location != TensorProto.EXTERNAL:
        return "has both values and a place outside of the file"
    if unknown or len(entries) != len(tensor.external_data):
        return f"describes its place by {[entry.key[:60] for entry in tensor.external_data][:8]}, known are {KEYS}"
    location = entries.get("location", "")
    if not is_plain(location) or "/" in location:
        return f"lies in {location[:200]!r}, expected the name of a file beside the model"
    wanted = bytes_of(tensor)
    if isinstance(wanted, str):
        return wanted
    start, length = (_count(entries.get(key, default)) for key, default in (("offset", "0"), ("length", str(wanted))))
    if start is None or length != wanted:
        told = {key: entries.get(key, "")[:30] for key in ("offset", "length")}
        return f"says {told} of its place, expected an offset and the {wanted:,} bytes of its shape"
    return Region(tensor.name[:60], location, start, start + wanted)


def bytes_of(tensor: TensorProto) -> int | str:
    """Returns how many bytes a tensor's shape takes, or what is wrong with its shape."""
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        return f"is of the type {tensor.data_type}, which is no weight's"
    if len(tensor.dims) > MOST_DIMENSIONS or min(tensor.dims, default=0) < 0:
        return f"has the shape {list(tensor.dims[:MOST_DIMENSIONS])}{'…' * (len(tensor.dims) > MOST_DIMENSIONS)}"
    values: int = math.prod(tensor.dims)
    return (values * bits + 7) // 8


def _count(text: str) -> int | None:
    """A number of bytes as text, None for what is none; 19 digits reach beyond any file."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None


def _size(folder: Path, location: str) -> int | str:
    """The bytes of a data file, or what is wrong with it."""
    try:
        status = contained(folder, location, PackageError).lstat()
    except PackageError as error:
        return str(error)
    except FileNotFoundError:
        return f"its data file {location} is missing"
    except OSError as error:
        return f"its data file {location} cannot be reached: {error.strerror}"
    return status.st_size if stat.S_ISREG(status.st_mode) else f"its data file {location} is no plain file"


def _misplaced(regions: list[Region], location: str, size: int) -> Iterator[str]:
    """Tensors that reach beyond the file's end, or into one another."""
    last = Region("", location, 0, 0)
    in_order = sorted(regions, key=lambda region: (region.start, region.end))
    beyond = [region for region in in_order if region.end > size]
    if beyond:
        first, count = beyond[0], f"{len(beyond)} of {len(regions)}"
        more = f" ({count} tensors do not lie in it whole)" if len(beyond) > 1 else ""
        yield f"tensor {first.tensor!r} ends at byte {first.end:,} of {location}, which has {size:,} bytes{more}"
    for region in in_order:
        if region.start < last.end and region.start < region.end:
            yield f"tensors {last.tensor!r} and {region.tensor!r} share bytes of {location}"
        last = max(last, region, key=lambda region: region.end)
