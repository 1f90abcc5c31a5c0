"""Safetensors files written value by value: header first, then blocks as they are drawn, so that memory stays flat.

Notable choices: files of at most a limit, named and indexed as transformers does; tensors of 8-byte values first in
each file, so that every value lies aligned. It does not know what the values mean.
Source: the format section of huggingface/safetensors' README.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fastvlm.progress import Advance
from fastvlm_ref.synthetic.layout import Tensor
from fastvlm_ref.synthetic.weights import Array

SHARD_BYTES = 5_000_000_000
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Values = Callable[[Tensor], Iterable[Array]]


def shards(tensors: list[Tensor], limit: int = SHARD_BYTES) -> dict[str, list[Tensor]]:
    """Returns {file name: its tensors}: one file, or as many as it takes that none holds more than `limit` bytes.

    A tensor is never cut, so one that is larger than the limit has a file of its own.
    """
    parts: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if parts[-1] and filled + tensor.bytes > limit:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += tensor.bytes
    if len(parts) == 1:
        return {WHOLE: parts[0]}
    return {f"model-{number:05}-of-{len(parts):05}.safetensors": part for number, part in enumerate(parts, 1)}


def write_shards(
    folder: Path, tensors: list[Tensor], values: Values, advance: Advance, limit: int = SHARD_BYTES
) -> None:
    """Writes all tensors into `folder`; `values` gives each one's blocks, `advance` is told of every byte written."""
    parts = shards(tensors, limit)
    for file, part in parts.items():
        with open(folder / file, "wb") as handle:
            _write(handle, part, values, advance)
    if len(parts) > 1:
        placed = {tensor.stored: file for file, part in parts.items() for tensor in part}
        content = {"metadata": {"total_size": sum(tensor.bytes for tensor in tensors)}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def _write(handle: BinaryIO, tensors: list[Tensor], values: Values, advance: Advance) -> None:
    ordered = sorted(tensors, key=lambda tensor: tensor.dtype != "I64")
    header = _header(ordered)
    handle.write(len(header).to_bytes(8, "little") + header)
    for tensor in ordered:
        for block in values(tensor):
            advance(handle.write(_stored(block)))


def _header(tensors: list[Tensor]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        offsets = [at, at + tensor.bytes]
        content[tensor.stored] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _stored(block: Array) -> bytes:
    """The bytes of a block: counters as they are, all else rounded to bf16 (to nearest, ties to even)."""
    if block.dtype == np.int64:
        return block.astype("<i8").tobytes()
    rounded = torch.from_numpy(np.ascontiguousarray(block)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().tobytes()
