"""Weights in blocks of whole rows: cut from flat pieces as they come from a file, worked on by many cores, in order.

A block is a multiple of the 32 rows that may share a palette, so where it ends changes no number; and each is worked on
by one thread, so neither does the number of cores. No more than a few blocks are in memory.
It does not know what is done to a block.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

STEP = 32  # rows
VALUES = 1 << 21  # of one block: 8 MB in float32, and a few times that while it is worked on
MOST_THREADS = 16  # each has a block in memory: with those of 64 cores, memory would pass what a 7B export may take

Item = TypeVar("Item")
Result = TypeVar("Result")


def block_rows(width: int) -> int:
    """Returns how many rows of `width` values make a block."""
    return max(1, VALUES // (width * STEP)) * STEP


def row_blocks(pieces: Iterable[Tensor], width: int) -> Iterator[Tensor]:
    """Returns float32 blocks (`block_rows`, width), the last one shorter, of flat pieces of any length and dtype."""
    size = block_rows(width) * width
    held: list[Tensor] = []
    count = 0
    for piece in pieces:
        held.append(piece.float())
        count += piece.numel()
        if count >= size:
            *blocks, rest = torch.cat(held).split(size)
            yield from (block.view(-1, width) for block in blocks)
            held, count = [rest], rest.numel()
    if count:
        yield torch.cat(held).view(-1, width)


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Returns what `work` makes of each item, in order, on up to 16 cores with one thread each; a few items wait."""
    cores = min(os.cpu_count() or 1, MOST_THREADS)
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
