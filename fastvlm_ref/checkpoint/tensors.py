"""Tensors that are read when asked for: a name, a shape, and how to get float32 values.

A checkpoint is a dict of `LazyTensor`; readers of layouts rename, permute, fuse and merge such dicts without touching
data, and the one place that fills the model reads each tensor once. Data comes from a private memory mapping, in
pieces, each converted and then released: the mapped pages of a 15 GB file never add up in this process.
It does not know names or models.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fastvlm.errors import CheckpointError
from fastvlm_ref.checkpoint.header import ITEM_BYTES, Entry, header_of
from fastvlm_ref.files import open_file

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
COUNTER = "num_batches_tracked"  # ends the name of what a batch norm counts in training, int64; nothing uses it
OWN_PAGES = 256 * 1024  # bytes from which a tensor gets pages of its own
PIECE = 16 * 1024 * 1024  # bytes converted at a time


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a checkpoint, not yet read.

    `read` returns float32 values of `shape`, contiguous and owned by the caller; `rows` returns the float32 rows that a
    1-D int64 tensor names, without reading the others where the storage allows it.
    """

    shape: tuple[int, ...]
    dtype: str  # as stored, for messages: BF16, F16, F32, or "F32" for computed ones
    where: str  # the file it comes from, for messages
    read: Callable[[], Tensor]
    rows: Callable[[Tensor], Tensor]
    pieces: Callable[[], Iterator[Tensor]]  # the raw values in order, flat, in their stored dtype


def computed(shape: Sequence[int], where: str, read: Callable[[], Tensor]) -> LazyTensor:
    """Returns a LazyTensor whose values are the result of `read`, worked out anew each time."""
    return LazyTensor(
        tuple(shape), "F32", where, read,
        lambda ids: read()[ids], lambda: iter((read().reshape(-1),)),
    )  # fmt: skip


def viewed(source: LazyTensor, shape: Sequence[int], change: Callable[[Tensor], Tensor]) -> LazyTensor:
    """Returns `source` seen through `change` (a permutation or reshape), with `shape` the result's."""
    return computed(shape, source.where, lambda: change(source.read()).contiguous())


class TensorFile:
    """A safetensors file, checked and mapped; `tensors` holds its contents by the names in the file.

    The mapping is copy-on-write, so nothing can reach the file; it closes with the last LazyTensor that uses it.
    Raises CheckpointError for anything `header_of` refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map: mmap.mmap | None = None
        try:
            with open_file(path) as file:  # the header and the data of one file, whatever lies at `path` by then
                self.entries = header_of(path, file)
                if any(entry.end > entry.begin for entry in self.entries):
                    self.map = self._mapped(file)
        except OSError as problem:
            raise CheckpointError(
                f"{path} cannot be read ({problem.strerror}); check the path and its permissions"
            ) from problem
        self.tensors = {entry.name: self._lazy(entry) for entry in self.entries}

    def _mapped(self, file: BinaryIO) -> mmap.mmap:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError as problem:  # an empty file cannot be mapped
            raise CheckpointError(f"{self.path} became shorter while it was read; fetch it again") from problem

    def _lazy(self, entry: Entry) -> LazyTensor:
        return LazyTensor(
            entry.shape, entry.dtype, self.path.name,
            lambda: self._read(entry), lambda ids: self._rows(entry, ids), lambda: self._pieces(entry),
        )  # fmt: skip

    def _float(self, entry: Entry) -> torch.dtype:
        if entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.path}: tensor {entry.name!r} is {entry.dtype}, expected one of {', '.join(FLOATS)}; "
                "quantised weights are not read, use the unquantised checkpoint"
            )
        return FLOATS[entry.dtype]

    def _span(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """Values of the bytes [begin, end) as a flat view of the mapping, or a copy where they are not aligned."""
        if self.map is None or begin == end:
            return torch.empty(0, dtype=dtype)
        if self.map.size() < end:  # pages behind the end of a file kill whoever touches them
            raise CheckpointError(f"{self.path} became shorter while it was read; fetch it again")
        if begin % dtype.itemsize:
            return torch.frombuffer(bytearray(self.map[begin:end]), dtype=dtype)
        return torch.frombuffer(self.map, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)

    def _release(self, begin: int, end: int) -> None:
        # Only whole pages inside the span: its neighbours may be in use.
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if self.map is not None and last > first:
            self.map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _pieces(self, entry: Entry) -> Iterator[Tensor]:
        dtype = self._float(entry)
        for begin in range(entry.begin, entry.end, PIECE):
            end = min(begin + PIECE, entry.end)
            yield self._span(begin, end, dtype)
            self._release(begin, end)

    def _read(self, entry: Entry) -> Tensor:
        out = own_memory(math.prod(entry.shape))
        at = 0
        for piece in self._pieces(entry):
            out[at : at + piece.numel()] = piece
            at += piece.numel()
        return out.view(entry.shape)

    def _rows(self, entry: Entry, ids: Tensor) -> Tensor:
        dtype, width = self._float(entry), math.prod(entry.shape[1:])
        stride = width * ITEM_BYTES[entry.dtype]
        out = torch.empty(len(ids), width, dtype=torch.float32)
        for index, row in enumerate(ids.tolist()):
            if not 0 <= row < entry.shape[0]:
                raise IndexError(f"row {row} of {entry.shape[0]}")
            begin = entry.begin + row * stride
            out[index] = self._span(begin, begin + stride, dtype)
        return out.view(len(ids), *entry.shape[1:])


def own_memory(count: int) -> Tensor:
    """Returns `count` uninitialised float32 values; large ones in pages that go back to the system with the tensor.

    malloc keeps what it once got: streaming layers through it left up to a third of the model resident, by chance.
    Pages of 2 MB where Linux has them: touching new ones of 4 KB took more time than reading and converting.
    """
    if count * 4 < OWN_PAGES:
        return torch.empty(count, dtype=torch.float32)
    pages = mmap.mmap(-1, count * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.float32)


def same_values(first: LazyTensor, second: LazyTensor) -> bool:
    """Tells whether two tensors hold equal values, reading no further than the first difference."""
    if first.shape != second.shape:
        return False
    if first.dtype != second.dtype or first.dtype not in FLOATS:
        return bool(torch.equal(first.read(), second.read()))
    return all(torch.equal(a, b) for a, b in zip(first.pieces(), second.pieces(), strict=True))
