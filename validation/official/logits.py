"""One forward pass to the last position, in two ways side by side: in float32, and each op rounded to bfloat16.

The first is what is compared with published logits. Those were computed in bfloat16, and a row that is not rounded
itself is nearer to them than one that is rounded in another order. The second is the yardstick: how far rounding alone
moves the logits of this very checkpoint. It stands in for a run in bfloat16, which is slow on processors without such
instructions; sums are float32 in it, as they are on a GPU.

Notable choices:
- both ways go through a layer while its weights are in memory, so that a streaming model is read once;
- rotary angles stay float32 and their tables are rounded once, as in transformers; inside a norm every op is rounded,
  where transformers rounds the result alone. Weights are used as they are stored: Apple's are bfloat16.
It knows neither pictures nor prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import materialised
from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.model.decoder import rope_tables
from fastvlm_ref.model.fastvlm import FastVLM
from validation.rounding import RoundEachOpToBFloat16, to_bfloat16

Row = NDArray[np.float32]
Both = tuple[Tensor, Tensor]  # in float32, and rounded


@dataclass(frozen=True)
class LastLogits:
    """Logits (V,) behind a prompt of `positions`: `exact` in float32, `rounded` with each op rounded to bfloat16."""

    positions: int
    exact: Row
    rounded: Row

    @property
    def rounding_error(self) -> float:
        """The RMS, over the vocabulary, of what bfloat16 adds to a logit."""
        return float(np.sqrt(np.mean((self.rounded.astype(np.float64) - self.exact) ** 2)))

    @property
    def spread(self) -> float:
        """The standard deviation of the logits over the vocabulary."""
        return float(self.exact.astype(np.float64).std())


def last_logits(
    model: FastVLM, pixels: Tensor, ids: tuple[Sequence[int], Sequence[int]], progress: Progress = SILENT
) -> LastLogits:
    """Returns the logits behind ids before the image, an image (1, 3, N, N) in [0, 1], and ids after it."""
    row = torch.tensor([[*ids[0], IMAGE_TOKEN, *ids[1]]])
    with torch.no_grad():
        with progress.stage("Encoder"):
            tokens = _both(model.encode_image, (pixels,), (to_bfloat16(pixels),))
        embeds = model.embed(row, tokens[0]), model.embed(row, tokens[1])  # each (1, S, H)
        exact, rounded = _head(model, _layers(model, embeds, progress))
    return LastLogits(embeds[0].shape[1], exact.numpy(), rounded.numpy())


def _both(step: Callable[..., Tensor], exact: tuple[Any, ...], rounded: tuple[Any, ...]) -> Both:
    with RoundEachOpToBFloat16():  # type: ignore[no-untyped-call]  # torch does not annotate its base
        result = step(*rounded)
    return step(*exact), result


def _layers(model: FastVLM, embeds: Both, progress: Progress) -> Both:
    """Takes embeddings (1, S, H) to what leaves the last layer, same shape."""
    exact, rounded = embeds
    length = exact.shape[1]
    rope = rope_tables(model.decoder.config, torch.arange(length))
    coarse = to_bfloat16(rope[0]), to_bfloat16(rope[1])
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    with progress.stage("Decoder", len(model.decoder.layers)) as advance:
        for index, layer in enumerate(model.decoder.layers):
            rest = (mask, None, index)
            with materialised(layer):
                exact, rounded = _both(layer, (exact, rope, *rest), (rounded, coarse, *rest))
            advance(1)
    return exact, rounded


def _head(model: FastVLM, hidden: Both) -> Both:
    """Returns the logits (V,) of the last position of (1, S, H)."""

    def last(x: Tensor) -> Tensor:
        return model.decoder.head(model.decoder.norm(x[:, -1:]))[0, 0]

    with materialised(model.decoder.lm_head):
        return _both(last, (hidden[0],), (hidden[1],))
