"""How long the stages of an answer take while packages are compared: what a report shows where nobody profiled.

These are no benchmark: the reference computes beside them, every op's result is looked at, all on one thread. The first
call of each function opens its package.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fastvlm_ref.engine import Engine

Rows = NDArray[np.float32]
STAGES = ("encode", "prefill", "first_token", "decode")


class Stopwatch:
    """An engine's calls as a comparison makes them, each timed; seconds by stage, in the order of the calls.

    encode: a picture at the engine's image size. prefill: a whole prompt but its last position, which is the first
    token's. decode: each further token.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._next = "first_token"

    def encode_image(self, pixels: NDArray[np.uint8]) -> Rows:
        """As the engine's."""
        if pixels.shape[0] != self.engine.image_size:
            return self.engine.encode_image(pixels)
        with self._timed("encode"):
            return self.engine.encode_image(pixels)

    def reset(self) -> None:
        """As the engine's."""
        self.engine.reset()

    def embed(self, ids: Sequence[int]) -> Rows:
        """As the engine's."""
        return self.engine.embed(ids)

    def prefill(self, embeds: Rows) -> None:
        """As the engine's; the next step gives the first token."""
        with self._timed("prefill"):
            self.engine.prefill(embeds)
        self._next = "first_token"

    def decode(self, embed: Rows) -> Rows:
        """As the engine's."""
        with self._timed(self._next):
            logits = self.engine.decode(embed)
        self._next = "decode"
        return logits

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage].append(time.perf_counter() - start)
