"""Logits of the reference's head without the head in memory: 2.2 GB in float32 for 7B.

Its rows are read some at a time and multiplied with the hidden states of all samples. The blocks are multiples of 32
rows, with which torch's product gives every logit the bits that it has in the product with the whole head; blocks of
other lengths do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from export.compression.blocks import block_rows
from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.model.decoder import Decoder

HEAD = "lm_head.weight"


@torch.inference_mode()
def logits_of(decoder: Decoder, hidden: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Returns logits float32 (V,) of each final hidden state float32 (1, 1, H); the head is read once."""
    (_, width), pieces = stored(decoder, HEAD)
    parts: list[list[Tensor]] = [[] for _ in hidden]
    for rows in _blocks(pieces(), width):
        for own, state in zip(parts, hidden, strict=True):
            own.append(F.linear(state, rows)[0, 0])
    return [torch.cat(own).numpy() for own in parts]


def _blocks(pieces: Iterable[Tensor], width: int) -> Iterator[Tensor]:
    """Gives rows (n, width), float32, of flat pieces of any length and dtype; each lies where the one before lay."""
    block, filled = torch.empty(block_rows(width) * width), 0
    for piece in pieces:
        while len(piece):
            taken = min(len(piece), len(block) - filled)
            block[filled : filled + taken] = piece[:taken]
            filled, piece = filled + taken, piece[taken:]
            if filled == len(block):
                yield block.view(-1, width)
                filled = 0
    if filled:
        yield block[:filled].view(-1, width)
