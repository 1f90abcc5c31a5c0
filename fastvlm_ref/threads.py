"""One torch thread, for whatever must give the same bytes on every machine.

Convolutions and matrix products of torch add up in another order on two threads than on one, and what is stored
(a build, a verdict) must not depend on how many cores there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block, or the function it decorates, on one thread; afterwards there are as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
