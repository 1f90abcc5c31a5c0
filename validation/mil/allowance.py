"""How much one call may compute: a package of a kilobyte can ask for a product that takes a year.

The unit is a multiplication of a large product: 2^36 take about 1 s of one thread here. `work` says what costs how
many. A call has 2^40, and 2^19 more for each byte of its weight files, at most 2^47: what a stranger's package of a
kilobyte asks for ends within 20 s, and one that wants half an hour brings 256 MB. An encoder needs most for its bytes:
at four bits a weight 2^16 at 2048 pixels, and 2^18.4 at the largest side whose maps a program may declare.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST_WITHOUT_WEIGHTS, MOST_FOR_A_BYTE = 1 << 40, 1 << 19
MOST_OF_A_CALL = 1 << 47


class Allowance:
    """What a call may still compute (`left`, less than 0: it asked for too much), of how much in `all`."""

    __slots__ = ("all", "left")

    def __init__(self, count: int):
        self.all = self.left = count

    def check(self) -> None:
        """Raises ValueError where more was spent than there was."""
        if self.left < 0:
            raise ValueError(
                f"with it this call asks for more than {self.all:,} multiplications, as many as the bytes of its "
                "weights allow; export it for smaller pictures or fewer rows at once"
            )


class _Running(threading.local):
    """The allowance of the call that this thread runs; None: no call runs."""

    allowance: Allowance | None = None


_running = _Running()


def allowance() -> Allowance:
    """The running call's; outside of a call one without end, which is the asker's alone."""
    return _running.allowance or Allowance(1 << 99)


def most_of_a_call(weight_bytes: int) -> int:
    """How much a call may compute of a program with weight files of that many bytes."""
    return min(MOST_OF_A_CALL, MOST_WITHOUT_WEIGHTS + MOST_FOR_A_BYTE * weight_bytes)


@contextmanager
def within_work(weight_bytes: int = 0) -> Iterator[None]:
    """A call: all ops inside, on this thread, have `most_of_a_call` together."""
    before = _running.allowance
    _running.allowance = Allowance(most_of_a_call(weight_bytes))
    try:
        yield
    finally:
        _running.allowance = before
