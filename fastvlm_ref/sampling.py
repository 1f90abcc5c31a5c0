"""How the next token is chosen from a row of logits: greedy, or temperature with top-p.

Notable choices:
- greedy unless asked otherwise, the first index wins a tie, so that two runtimes can be compared token by token;
- the arithmetic is float64 and the generator is numpy's PCG64, so that a seed gives the same draws everywhere.
It knows nothing of text or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm.errors import ExecutionError, UsageError


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; above it, draws from the smallest set of tokens that holds `top_p` of the probability.

    Raises UsageError for numbers that cannot work.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"--temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p}; it must be above 0 and at most 1")
        if self.greedy and self.top_p < 1:
            raise UsageError(f"--top-p {self.top_p} does nothing at --temperature 0 (greedy); set a --temperature too")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; it must be 0 or a positive whole number")

    @property
    def greedy(self) -> bool:
        """True where no chance is involved."""
        return self.temperature == 0

    def generator(self) -> np.random.Generator:
        """Returns the source of chance for one answer."""
        return np.random.Generator(np.random.PCG64(self.seed))


def choose(
    logits: NDArray[np.float32],
    sampling: Sampling,
    generator: np.random.Generator,
    advice: str = "compare the model with its source",
) -> int:
    """Returns the id chosen from logits (V,). Raises ExecutionError, ending in `advice`, for NaN or nothing finite."""
    top = float(logits.max())  # NaN where any logit is NaN
    if not math.isfinite(top):
        bad = int(np.isnan(logits).sum())
        raise ExecutionError(
            f"the logits are not numbers: {bad} of {logits.size} are NaN, the largest is {top}; "
            f"the weights are damaged, or a value left the range of fp16: {advice}"
        )
    if sampling.greedy:
        return int(logits.argmax())
    probabilities = np.exp((logits.astype(np.float64) - top) / sampling.temperature)
    order = np.argsort(-probabilities, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    kept = int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1  # up to the first that reaches it
    kept = min(kept, order.size)
    drawn = np.searchsorted(cumulative[:kept], generator.random() * cumulative[kept - 1], side="right")
    return int(order[min(int(drawn), kept - 1)])
