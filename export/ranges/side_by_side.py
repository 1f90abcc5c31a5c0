"""Several inputs at a time, each on one thread: as fast as several threads on one input, and the same bytes as one.

torch's number of threads is one for the whole process while it runs; the caller sets it (`fastvlm_ref.threads`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(function: Callable[[Job], Result], jobs: Sequence[Job], most: int) -> Iterator[Result]:
    """Gives function(job) of every job, in order; at most `most` run at a time, and no more than there are cores."""
    assert torch.get_num_threads() == 1  # else the bytes would depend on the cores
    pool = ThreadPoolExecutor(max(1, min(most, cores(), len(jobs))))
    try:
        yield from pool.map(function, jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for what runs, not for all
