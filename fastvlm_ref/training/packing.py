"""Several questions about one picture in one row of ids, computed as if each stood alone behind the picture.

Notable choices:
- the prefix (system text and picture) is computed once; every question block sees the prefix and itself, never
  another block, and its positions continue the prefix's: the answers' losses equal those of separate rows;
- the loss counts answer tokens alone, the end-of-turn token among them.
It does not know what a question is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvlm_ref.config import IMAGE_TOKEN
from fastvlm_ref.model.decoder import Decoder, rope_tables
from fastvlm_ref.training.finding import WIDTH

IGNORED = -100
PADDING = -1


@dataclass(frozen=True)
class Block:
    """One question behind the prefix: its ids up to the answer, the answer's ids with their end, and labels of
    `finding` at positions of the two together."""

    prompt: list[int]
    answer: list[int]
    marks: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Packed:
    """A batch of rows, all int64 (B, S): ids (−200 for each image token), positions, blocks (0 prefix), next ids;
    `lengths` holds at each target how many targets its answer has; `marks` (n, 2 + 6) are row, position and labels."""

    ids: Tensor
    positions: Tensor
    blocks: Tensor
    targets: Tensor
    lengths: Tensor
    marks: Tensor


def pack(rows: Sequence[tuple[list[int], Sequence[Block]]]) -> Packed:
    """Returns the batch of (prefix ids, blocks) rows, padded to the longest."""
    packed = [_pack_row(prefix, blocks) for prefix, blocks in rows]
    longest = max(len(ids) for ids, *_ in packed)
    fills = (0, 0, PADDING, IGNORED, 1)
    columns = zip(*packed, strict=True)
    ids, positions, owners, targets, lengths = (
        _pad(column, longest, fill) for column, fill in zip(columns, fills, strict=True)
    )
    marks = [
        (row, position, *there) for row, (prefix, blocks) in enumerate(rows)
        for position, there in _marks(len(prefix), blocks)
    ]  # fmt: skip
    labels = torch.tensor(marks, dtype=torch.int64).reshape(len(marks), 2 + WIDTH)
    return Packed(ids, positions, owners, targets, lengths, labels)


def _marks(start: int, blocks: Sequence[Block]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yields the marks of one row with their positions in it."""
    for block in blocks:
        for position, labels in block.marks.items():
            yield start + position, labels
        start += len(block.prompt) + len(block.answer) - 1


def _pack_row(prefix: list[int], blocks: Sequence[Block]) -> tuple[list[int], ...]:
    ids, positions = list(prefix), list(range(len(prefix)))
    owners, targets, lengths = [0] * len(prefix), [IGNORED] * len(prefix), [1] * len(prefix)
    for number, block in enumerate(blocks, 1):
        whole = block.prompt + block.answer[:-1]  # the last id is only ever a target
        ids += whole
        positions += range(len(prefix), len(prefix) + len(whole))
        owners += [number] * len(whole)
        targets += [IGNORED] * (len(block.prompt) - 1) + block.answer
        lengths += [len(block.answer)] * len(whole)
    return ids, positions, owners, targets, lengths


def _pad(rows: Sequence[list[int]], length: int, fill: int) -> Tensor:
    return torch.from_numpy(np.array([row + [fill] * (length - len(row)) for row in rows], np.int64))


def visible(packed: Packed) -> Tensor:
    """Returns bool (B, 1, S, S): True where a query may look: what came before in its block or the prefix."""
    length = packed.ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = packed.blocks[:, :, None], packed.blocks[:, None, :]
    return (causal & ((key == query) | (key == 0)))[:, None]


def layer_states(decoder: Decoder, packed: Packed, image_tokens: Tensor | None) -> list[Tensor]:
    """Returns the states (B, S, H) behind each of the decoder's layers.

    `image_tokens` (B, T, H) take the places of the −200 ids in order; None for rows without a picture.
    """
    is_image = packed.ids == IMAGE_TOKEN
    x = decoder.embed_tokens(packed.ids.masked_fill(is_image, 0))  # (B, S, H)
    if image_tokens is not None:
        x = x.masked_scatter(is_image[..., None], image_tokens.to(x.dtype))
    batch, length = packed.ids.shape
    cos, sin = rope_tables(decoder.config, packed.positions.flatten())  # (B·S, D)
    rope = (cos.view(batch, 1, length, -1).to(x.dtype), sin.view(batch, 1, length, -1).to(x.dtype))
    mask = visible(packed)
    states: list[Tensor] = []
    for index, layer in enumerate(decoder.layers):
        x = layer(x, rope, mask, None, index)
        states.append(x)
    return states


def answer_loss(
    decoder: Decoder, packed: Packed, last: Tensor, *, per_question: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Returns the mean cross-entropy over answer tokens, and the share of them that are right.

    `last` (B, S, H) is the state behind the last layer. `per_question` gives every question the same say, however long
    its answer: else captions drown one-word answers.
    """
    asked = packed.targets != IGNORED
    logits = decoder.head(decoder.norm(last[asked]))
    targets = packed.targets[asked]
    right = float((logits.argmax(-1) == targets).float().mean())
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    if not per_question:
        return losses.mean(), {"tokens_right": right}
    shares = 1 / packed.lengths[asked].float()
    return (losses * shares).sum() / shares.sum(), {"tokens_right": right}
