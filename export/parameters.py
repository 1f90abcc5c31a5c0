"""Where the numbers of a graph's parameters come from, read piece by piece on their way into the weight file.

What is folded into the checkpoint's tensors on that way is declared in `export.decoder_weights` and `export.encoder`.
fp16 cannot hold everything that bf16 and float32 can: what is too large is clamped and counted, NaN and infinity are
refused (`export.weights`).
It knows nothing of Core ML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from export.compression.blocks import row_blocks
from export.compression.schemes import Scheme
from export.weights import saturate
from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.model.decoder import Decoder

HEAD = "lm_head.weight"
ROOMS = {"decoder": "language", "vision_encoder": "encoder"}  # what recipes call the two models


@dataclass(frozen=True)
class GraphWeight:
    """One parameter of a graph: its name and shape, and its values in order, float32, piece by piece.

    scheme: how it is stored, None for fp16. importance: E[x²] of each input channel, float32 (K,), where measured.
    columns: which of the checkpoint's input channels each of its own is, int64 (K,); None where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Tensor]]
    scheme: Scheme | None = None
    importance: Tensor | None = None
    columns: Tensor | None = None

    @property
    def layer(self) -> str:
        """How a recipe speaks of it: `language.layers.0.mlp.up_proj`, `encoder.network.2.0.convffn.fc1`."""
        name = re.sub(r"^decoder\.lm_head\.\d+\.", "decoder.lm_head.", self.name).removesuffix(".weight")
        part, _, rest = name.partition(".")
        return f"{ROOMS.get(part, part)}.{rest}"

    def blocks(self, clamped: dict[str, int]) -> Iterator[Tensor]:
        """Its rows in order, float32 (n, ...), block by block; `clamped` and TensorError as `halves`."""
        for block in row_blocks(self._saturated(clamped), prod(self.shape[1:])):
            yield block.reshape(-1, *self.shape[1:])

    def halves(self, clamped: dict[str, int]) -> Iterator[bytes]:
        """Its values as fp16 bytes; adds to `clamped` under its name how many were too large. TensorError as said."""
        for values in self._saturated(clamped):
            yield np.ascontiguousarray(values.half().numpy()).tobytes()

    def singles(self) -> Iterator[bytes]:
        """Its values as float32 bytes, none of which is too large; TensorError as said."""
        for values in self.checked():
            yield np.ascontiguousarray(values.float().numpy()).tobytes()

    def checked(self) -> Iterator[Tensor]:
        """Its values as they are, piece by piece; TensorError as said."""
        for piece in self.pieces():
            saturate(self.name, piece)  # for what it refuses
            yield piece

    def _saturated(self, clamped: dict[str, int]) -> Iterator[Tensor]:
        total = 0
        for piece in self.pieces():
            values, count = saturate(self.name, piece)
            total += count
            yield values
        if total:
            clamped[self.name] = total


def graph_weights(graph: nn.Module, part: str) -> dict[str, GraphWeight]:
    """Returns the parameters of a graph that is whole in memory, by name; `part` goes before it in messages."""
    return {name: GraphWeight(f"{part}.{name}", *stored(graph, name)) for name, _ in graph.named_parameters()}


def tensor_weight(decoder: Decoder, name: str) -> GraphWeight:
    """Returns a tensor of the decoder as the checkpoint has it."""
    shape, pieces = stored(decoder, name)
    return GraphWeight(f"decoder.{name}", shape, lambda: (piece.float() for piece in pieces()))


def head_weight(decoder: Decoder, part: int, rows: int) -> GraphWeight:
    """Returns rows part·rows … (part + 1)·rows − 1 of the head (V, H); those from V on are zeros."""
    (height, width), pieces = stored(decoder, HEAD)
    first, last = part * rows * width, min((part + 1) * rows, height) * width
    missing = (part + 1) * rows * width - last

    def values() -> Iterator[Tensor]:
        yield from (piece.float() for piece in between(pieces(), first, last))
        if missing > 0:
            yield torch.zeros(missing)

    return GraphWeight(f"decoder.lm_head.{part}.weight", (rows, width), values)


def between(pieces: Iterator[Tensor], first: int, last: int) -> Iterator[Tensor]:
    """Returns values first … last − 1 of flat pieces in order; pages of a piece outside stay unread."""
    at = 0
    for piece in pieces:
        begin, end = max(first - at, 0), min(last - at, piece.numel())
        at += piece.numel()
        if begin < end:
            yield piece[begin:end]
        if at >= last:
            return
