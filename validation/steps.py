"""How many greedy steps a comparison takes: the one place that knows.

Where the model fits into memory, 64. Layer by layer every step reads all weights again, 15 GB of a 7B, so there are 8
unless more are asked for.
"""

from __future__ import annotations

from fastvlm.errors import UsageError

IN_MEMORY, LAYERWISE = 64, 8
MOST = 256


def steps_for(asked: int | None, layerwise: bool) -> int:
    """Returns the number of steps per sample, `asked` where it is given; raises UsageError outside 1 … MOST."""
    if asked is None:
        return LAYERWISE if layerwise else IN_MEMORY
    if not 1 <= asked <= MOST:
        raise UsageError(f"steps is {asked}, expected 1 to {MOST}")
    return asked
