"""The rows of a large matrix, some at a time: embedding table and head, which are never whole in memory.

It reads from the checkpoint's file where the model streams. It does not know what the rows are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from export.ranges.watch import Extremes, extremes
from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.model.decoder import Decoder

TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"


def rows_of(decoder: Decoder, name: str) -> Iterator[tuple[int, Tensor]]:
    """Gives (first row, rows (n, H) in float32) of a matrix of the decoder, in order, as its file is read."""
    (_, width), pieces = stored(decoder, name)
    first, left = 0, torch.empty(0)
    for piece in pieces():
        values = torch.cat((left, piece.float()))
        whole = len(values) // width
        yield first, values[: whole * width].view(whole, width)
        first, left = first + whole, values[whole * width :]


@dataclass(frozen=True)
class Table:
    """The embedding table: its extremes, and the ids of its longest row and of its shortest that is not zero."""

    extremes: Extremes
    longest: int
    shortest: int


def read_table(decoder: Decoder, tokens: int) -> Table:
    """Reads the whole table; the two ids are below `tokens`, since no token has the rows behind."""
    seen, lengths = Extremes(), []
    for _, rows in rows_of(decoder, TABLE):
        seen |= extremes(rows)
        lengths.append(rows.norm(dim=1))
    found = torch.cat(lengths)[:tokens]
    shortest = torch.where(found > 0, found, torch.inf).argmin()
    return Table(seen, int(found.argmax()), int(shortest))
