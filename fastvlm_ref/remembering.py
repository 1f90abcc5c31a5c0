"""An engine that remembers: asked again about the same picture, it computes only what is new.

`Remembering` stands before any engine and has the same surface, so the loop that drives it knows nothing of this:
- the image tokens of the last pictures are kept, found again by a hash of the pixels;
- a hash of every row in the cache is kept. After `reset`, rows that come again are passed by, for as long as they are
  the same from the first one on: the system text, the picture, earlier questions and answers of a conversation.
Keys and values depend on the rows before them alone, so those that stay are those that would be computed: logits are a
fresh prompt's, but for the noise of sums that are cut in other places.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastvlm_ref.engine import Advice, Engine

PICTURES = 4  # whose image tokens are kept: 1 MB each of 0.5B, 4 MB of 7B

AnyEngine = TypeVar("AnyEngine", bound=Engine)


class Remembering(Generic[AnyEngine]):
    """`engine` with a memory; the engine belongs to it from now on, nobody else may move its positions.

    `reused` counts the positions that were passed by since the last `reset`.
    """

    def __init__(self, engine: AnyEngine, pictures: int = PICTURES) -> None:
        self.engine = engine
        self.reused = 0
        self._most = pictures
        self._pictures: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._rows: list[bytes] = []  # what the engine's cache holds, position by position
        self._position = 0  # up to which it is asked for

    @property
    def context(self) -> int:
        """As the engine's."""
        return self.engine.context

    @property
    def image_size(self) -> int:
        """As the engine's."""
        return self.engine.image_size

    @property
    def together(self) -> int:
        """As the engine's."""
        return self.engine.together

    @property
    def advice(self) -> Advice:
        """As the engine's."""
        return self.engine.advice

    def tokens_at(self, side: int) -> int:
        """As the engine's."""
        return self.engine.tokens_at(side)

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """As the engine's."""
        return self.engine.embed(ids)

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns image tokens (T, H) of pixels (N, N, 3), those of the last time where they are kept."""
        key = _hash(np.array(pixels.shape)) + _hash(pixels)
        tokens = self._pictures.pop(key, None)
        if tokens is None:
            tokens = self.engine.encode_image(pixels)
        self._pictures[key] = tokens
        while len(self._pictures) > self._most:
            self._pictures.popitem(last=False)
        return tokens

    def reset(self) -> None:
        """Begins anew; what the cache holds is kept for the case that it comes again."""
        self._position = self.reused = 0

    def rewind(self, position: int) -> None:
        """As the engine's: the rows behind are kept, as `reset` keeps them."""
        if not 0 <= position <= self._position:
            raise ValueError(f"cannot go back to position {position}: {self._position} are filled")
        self._position = position

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills the cache with S positions from embeddings (S, H), but for those that it holds already."""
        rows = [_hash(row) for row in embeds]
        new = self._pass_by(rows)
        if new < len(rows):
            self._forget()
            self.engine.prefill(embeds[new:])
            self._remember(rows[new:])

    def decode(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fills S positions from embeddings (S, H) and returns the logits (V,) behind the last, which is computed."""
        rows = [_hash(row) for row in embeds]
        new = self._pass_by(rows[:-1])
        self._forget()
        logits = self.engine.decode(embeds[new:])
        self._remember(rows[new:])
        return logits

    def _pass_by(self, rows: Sequence[bytes]) -> int:
        """Moves on over the rows that the cache holds here already, and returns how many these are."""
        here = self._rows[self._position :]
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(rows, here, strict=False)))
        self._position += same
        self.reused += same
        return same

    def _forget(self) -> None:
        """Puts the engine back to the position; a call that fails from here on leaves nothing remembered behind it."""
        del self._rows[self._position :]
        self.engine.rewind(self._position)

    def _remember(self, rows: Sequence[bytes]) -> None:
        self._rows += rows
        self._position += len(rows)


def _hash(values: NDArray[np.generic]) -> bytes:
    """16 bytes that stand for the values of an array; by chance two are the same once in 10¹⁹ pictures or rows."""
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
