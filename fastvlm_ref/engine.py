"""What generation needs of a runtime: pictures to features, ids to rows, rows to logits. It knows nothing of text.

`Engine` is the surface; `TorchEngine` is the reference behind it. The engine over Core ML packages has the same
surface, so that one generation loop serves both and a difference in their answers is a difference in the numbers.
Batch is 1 throughout: one picture, one conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastvlm.errors import ExecutionError, UsageError
from fastvlm_ref.config import LARGEST_SIDE
from fastvlm_ref.image import pixels_to_tensor
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.kv_cache import KVCache

LARGER_BUILD = "export again with a larger --context, which is fixed in a build"


@dataclass(frozen=True)
class Advice:
    """What a user can do about an engine's limits; each ends a message."""

    larger_context: str
    not_numbers: str


class Engine(Protocol):
    """One model with one context; `prefill` and `decode` move on from position 0, where `reset` puts it back.

    What a cache holds behind its position is never read, so `rewind` costs nothing.
    """

    @property
    def context(self) -> int:
        """C, positions that prompt and answer share."""

    @property
    def image_size(self) -> int:
        """N, the side that pictures are brought to."""

    @property
    def advice(self) -> Advice:
        """What to do where the context is too small, or where NaN comes out."""

    @property
    def together(self) -> int:
        """How many rows one `decode` takes: 1 where a prompt is read by a function that has no head."""

    def tokens_at(self, side: int) -> int:
        """Returns T, how many positions an image of N = `side` takes, before anything is computed."""

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns image tokens (T, H) of pixels (N, N, 3)."""

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns rows (S, H) of the embedding table."""

    def reset(self) -> None:
        """Forgets all positions."""

    def rewind(self, position: int) -> None:
        """Forgets all but the first `position` positions; ValueError where there are fewer."""

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills the cache with S positions from embeddings (S, H)."""

    def decode(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fills S positions, 1 to `together`, from embeddings (S, H) and returns the logits (V,) behind the last."""


class TorchEngine:
    """The PyTorch model behind `Engine`, with a KV cache of `context` positions in the weights' dtype.

    `image_size` None is the checkpoint's own. Raises UsageError as `check_side` does.
    """

    advice = Advice("use a larger --context", "fetch the checkpoint again, or take an earlier one of its training")
    together = 1  # as the packages that are compared with it

    def __init__(self, model: FastVLM, context: int = 2048, image_size: int | None = None) -> None:
        stride = model.config.vision.stride
        self.model = model
        self.context = context
        self.image_size = image_size or model.config.vision.image_size
        check_side(self.image_size, stride)
        self._cache = self._empty_cache()

    def tokens_at(self, side: int) -> int:
        """Returns T for an image of `side` pixels."""
        return self.model.config.vision.tokens_at(side)

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns image tokens (T, H) of pixels (N, N, 3), N a multiple of the tower's stride."""
        stride = self.model.config.vision.stride
        if pixels.ndim != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[2] != 3 or pixels.shape[0] % stride:
            expected = f"(N, N, 3) with N a multiple of {stride}"
            raise ExecutionError(f"pixels have the shape {pixels.shape}; expected {expected}")
        with torch.inference_mode():
            tokens = self.model.encode_image(pixels_to_tensor(pixels).to(self._dtype))
        return _numpy(tokens[0])

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns rows (S, H) of the embedding table."""
        with torch.inference_mode():
            return _numpy(self.model.embed(torch.tensor([list(ids)], dtype=torch.long))[0])

    def reset(self) -> None:
        """Forgets all positions; the cache's memory is kept."""
        self._cache.length = 0

    def rewind(self, position: int) -> None:
        """Forgets all but the first `position` positions; ValueError where there are fewer."""
        check_rewind(position, self._cache.length)
        self._cache.length = position

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills the cache with S positions from embeddings (S, H); the head is not computed."""
        if len(embeds):
            self._advance(embeds)

    def decode(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fills one position from an embedding (1, H) and returns the logits (V,) behind it."""
        hidden = self._advance(embeds)
        with torch.inference_mode():
            return _numpy(self.model.decoder.head(hidden[:, -1:])[0, 0])

    def _advance(self, embeds: NDArray[np.float32]) -> torch.Tensor:
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(embeds)).to(self._dtype)[None]  # (1, S, H)
            hidden: torch.Tensor = self.model.decoder(rows, self._cache)
        return hidden

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.decoder.norm.weight.dtype

    def _empty_cache(self) -> KVCache:
        return KVCache(self.model.config.text, self.context, dtype=self._dtype)


def check_side(side: int, stride: int = 1) -> None:
    """Raises UsageError unless `side` is a multiple of the tower's stride, at most LARGEST_SIDE.

    Before a checkpoint is read its stride is unknown; 1 checks the limit alone.
    """
    if not 0 < side <= LARGEST_SIDE or side % stride:
        multiple = f"a multiple of {stride} " if stride > 1 else ""
        raise UsageError(f"--image-size is {side}; it must be {multiple}from {stride} to {LARGEST_SIDE}")


def check_rewind(position: int, filled: int) -> None:
    """Raises ValueError unless `position` is one that is filled, or the one behind: no cache holds what comes later."""
    if not 0 <= position <= filled:
        raise ValueError(f"cannot go back to position {position}: {filled} are filled")


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().numpy()
    return array
