"""Deep supervision of the decoder: what and where in the picture the thing is that a question or an answer names.

Notable choices:
- the token that names a shape ("star") answers, halfway through the layers, for that shape's kind, colour, size and
  cell; the prompt's last token, one layer later, for the cells of all that the question names, and the tokens of a
  caption for the cell of the shape that comes next. What is left for the remaining layers is to say it, or to compare
  two cells;
- without it, an answer two steps away from the name (find it, then compare) was not learned at all: docs/training.md;
- the heads are thrown away after the stage, like those of the encoder's own pre-training (`supervision`).
It knows marks, not questions and not pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm_ref.training.scenes import COLOURS, COLUMNS, SHAPES, SIZES, Shape

CELLS = 3 * COLUMNS
NAMED = {"kind": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES), "cell": CELLS}  # at the token that names
ASKED = {"first": CELLS, "second": CELLS}  # before what is said
NOTHING = -100
WIDTH = len(NAMED) + len(ASKED)


def cell(shape: Shape) -> int:
    """Returns the number of the shape's cell, row by row."""
    return shape.row * COLUMNS + shape.column


def named_mark(shape: Shape) -> tuple[int, ...]:
    """Returns the labels at the token that names `shape`."""
    own = (SHAPES.index(shape.kind), COLOURS.index(shape.colour), SIZES.index(shape.size), cell(shape))
    return (*own, *(NOTHING for _ in ASKED))


def asked_mark(shapes: Sequence[Shape]) -> tuple[int, ...]:
    """Returns the labels at a token before something is said of `shapes`, in the order of their names."""
    cells = [cell(shape) for shape in shapes] + [NOTHING] * (len(ASKED) - len(shapes))
    return (*(NOTHING for _ in NAMED), *cells)


class FindingHeads(nn.Module):
    """Linear heads on the states behind two of the decoder's layers."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = (max(0, layers // 2 - 1), layers // 2)
        self.named = nn.Linear(hidden, sum(NAMED.values()))
        self.asked = nn.Linear(hidden, sum(ASKED.values()))

    def loss(self, states: Sequence[Tensor], marks: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Returns the sum of the cross-entropies, and the shares that are right.

        `states` are (B, S, H), one behind each layer; `marks` int64 (n, 2 + 6): row, position, and the labels there.
        """
        row, position, *targets = marks.T
        early, late = (states[layer][row, position] for layer in self.layers)  # (n, H)
        logits = [
            *self.named(_normed(early)).split(list(NAMED.values()), -1),
            *self.asked(_normed(late)).split(list(ASKED.values()), -1),
        ]
        total = torch.zeros(())
        seen: dict[str, float] = {}
        for name, scores, target in zip((*NAMED, *ASKED), logits, targets, strict=True):
            there = target != NOTHING
            right = (scores[there].argmax(-1) == target[there]).float().mean()
            seen[f"finds_{name}"] = float(right)  # NaN where nothing is named
            if there.any():
                total = total + F.cross_entropy(scores[there].float(), target[there])
        return total, seen


def _normed(states: Tensor) -> Tensor:
    return F.rms_norm(states, states.shape[-1:])
