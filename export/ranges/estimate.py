"""How long a scan will take on this machine, told before it begins: a small frame and one matrix product are timed.

It is a guess to plan by: other work on the machine, and reading the file, are not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from export.encoder import EncoderGraph
from export.plan import STRIDE
from export.ranges.decoder import MOST_PROMPTS
from export.ranges.encoder import MOST_FRAMES
from export.ranges.prompts import position_flop
from export.ranges.side_by_side import cores
from fastvlm_ref.config import TextConfig

SHARE = 4  # the timed frame has a quarter of the side
ROWS, INPUTS, OUTPUTS = 256, 1024, 4096  # of the timed product


def encoder_seconds(graph: EncoderGraph, pictures: int, sides: Sequence[int]) -> float:
    """Returns about how many seconds the encoder takes for all pictures at all sides N."""
    small = max(STRIDE, sides[0] // SHARE // STRIDE * STRIDE)
    frame = torch.zeros(1, 3, small, small)
    each = _seconds(lambda: graph(frame))
    return each * sum((side / small) ** 2 for side in sides) * pictures / min(MOST_FRAMES, cores())


def decoder_seconds(text: TextConfig, positions: int) -> float:
    """Returns about how many seconds the layers take for that many positions."""
    rows, weight = torch.ones(ROWS, INPUTS), torch.ones(OUTPUTS, INPUTS)
    each = _seconds(lambda: F.linear(rows, weight)) / (2 * ROWS * INPUTS * OUTPUTS)
    return each * position_flop(text) * positions / min(MOST_PROMPTS, cores())


def in_words(seconds: float) -> str:
    """Returns a duration for a reader: `40 s`, `3 min`."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


@torch.no_grad()
def _seconds(run: Callable[[], object]) -> float:
    """The second run of two: the first also lays out weights."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
