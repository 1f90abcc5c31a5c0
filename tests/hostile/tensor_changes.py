"""A checkpoint with one tensor changed in its description: transposed, one longer, one shorter, gone, renamed, retyped.

Only the header is written; behind it the file is a hole of the right length, which reads as zeros. What a load must
tell it tells before it reads values, and zeros make the head equal to the embedding table, as it is in the original.

What no reader of shapes can tell is left out and counted: transposing what is square or of one axis, and whatever is
done to counters, which play no part. That a tied head is gone is no fault.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ITEM = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8}
OTHER = {"BF16": "I16", "F16": "I16", "F32": "I32", "I64": "F64"}
KINDS = ("transposed", "one more", "one fewer", "dropped", "renamed", "retyped")
Tensors = dict[str, tuple[str, list[int]]]  # dtype and shape by name, in the order of their bytes


def tensors_of(header: dict[str, Any]) -> Tensors:
    """Returns what a header describes."""
    found = sorted(header.items(), key=lambda item: item[1]["data_offsets"]) if header else []
    return {name: (entry["dtype"], entry["shape"]) for name, entry in found}


def write(file: Path, tensors: Tensors) -> None:
    """Writes a safetensors file of these tensors, all of it zeros."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        count = 1
        for side in shape:
            count *= side
        size = count * {**ITEM, "I16": 2, "I32": 4, "F64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + at)


def transposed(shape: list[int]) -> list[int] | None:
    """Returns the shape with its first two axes that differ exchanged; None where all are equal, or there is one."""
    for first in range(len(shape)):
        for second in range(first + 1, len(shape)):
            if shape[first] != shape[second]:
                turned = list(shape)
                turned[first], turned[second] = turned[second], turned[first]
                return turned
    return None


def changes(tensors: Tensors) -> Iterator[tuple[str, str, Tensors | None]]:
    """Gives (kind, tensor, all tensors after the change) of each tensor and kind; None where it cannot be told."""
    for name, (dtype, shape) in tensors.items():
        for kind in KINDS:
            yield kind, name, _changed(tensors, kind, name, dtype, shape)


def _changed(tensors: Tensors, kind: str, name: str, dtype: str, shape: list[int]) -> Tensors | None:
    if name.endswith("num_batches_tracked") or (kind == "dropped" and name.endswith("lm_head.weight")):
        return None
    if kind == "dropped":
        return {key: value for key, value in tensors.items() if key != name}
    if kind == "renamed":
        return {f"{key}s" if key == name else key: value for key, value in tensors.items()}
    if kind == "retyped":
        return {**tensors, name: (OTHER[dtype], shape)}
    if kind == "transposed":
        turned = transposed(shape)
        return None if turned is None else {**tensors, name: (dtype, turned)}
    longest = max(range(len(shape)), key=lambda axis: shape[axis])
    sides = list(shape)
    sides[longest] += 1 if kind == "one more" else -1
    return {**tensors, name: (dtype, sides)}
