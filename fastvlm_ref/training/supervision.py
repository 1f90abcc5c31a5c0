"""Dense supervision for the encoder's own pre-training: what lies under each image token.

Notable choices:
- every token answers for the shape or text around its own 64×64 patch: features are then readable where things are;
- a pooled head counts and reads once more, which trains the attention stages to gather;
- the heads are thrown away after the stage: the language model learns to read the features itself.
Source of the idea: the paper pre-trains its encoder apart (CLIP); at this scale labels replace a billion captions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm_ref.training.scenes import COLOURS, SHAPES, SIZES, WORDS, Scene

PATCH = 64
# classes of each per-token label; 0 always means "nothing of that sort here"
TOKEN_CLASSES = {
    "kind": 1 + len(SHAPES), "colour": 1 + len(COLOURS), "size": 1 + len(SIZES),
    "word": 2 + len(WORDS), "tens": 11, "units": 11,
}  # fmt: skip
POOLED_CLASSES = {"count": 5, "word": 2 + len(WORDS), "tens": 11, "units": 11}
LABELS = (*TOKEN_CLASSES, *(f"pooled_{name}" for name in POOLED_CLASSES))


def labels(scene: Scene, side: int = 256) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns per-token labels (T, 6) and pooled labels (4,), columns in the order of the tables above."""
    grid = side // PATCH
    tokens = np.zeros((grid, grid, len(TOKEN_CLASSES)), np.int64)
    centres = (np.arange(grid) + 0.5) * PATCH
    lift = (256 - scene.height) / 2  # black bar above a wide picture
    for shape in scene.shapes:
        under = _near(centres, shape.y + lift, 42)[:, None] & _near(centres, shape.x, 42)[None]
        values = (1 + SHAPES.index(shape.kind), 1 + COLOURS.index(shape.colour), 1 + SIZES.index(shape.size))
        tokens[under, :3] = values
    reading = _reading(scene)
    if scene.text is not None:
        under = _near(centres, scene.text.y + lift, 42)[:, None] & _near(centres, scene.text.x, 70)[None]
        tokens[under, 3:] = reading
    return tokens.reshape(grid * grid, -1), np.array((len(scene.shapes), *reading), np.int64)


def _near(centres: NDArray[np.floating[Any]], at: float, reach: float) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.abs(centres - at) < reach
    return near


def _reading(scene: Scene) -> tuple[int, int, int]:
    """Word (1 for "a number", 2… for the words), tens, units; 0 where there is none."""
    if scene.text is None:
        return 0, 0, 0
    if scene.text.is_number:
        return 1, 1 + int(scene.text.text[0]), 1 + int(scene.text.text[1])
    return 2 + WORDS.index(scene.text.text), 0, 0


class DenseHeads(nn.Module):
    """Linear heads on the encoder's features: one set per token, one on their mean."""

    def __init__(self, features: int, tokens: int = 0) -> None:
        super().__init__()
        self.place = nn.Linear(features, tokens) if tokens else None  # which of the T tokens it is
        self.norm = nn.LayerNorm(features)
        self.token = nn.Linear(features, sum(TOKEN_CLASSES.values()))
        self.pooled = nn.Linear(features, sum(POOLED_CLASSES.values()))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:  # (B, T, F) -> (B, T, …), (B, …)
        normed = self.norm(features)
        return self.token(normed), self.pooled(normed.mean(1))

    def place_loss(self, features: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Returns the cross-entropy of each token's own number: nothing else tells a feature where it is."""
        assert self.place is not None
        batch, tokens, _ = features.shape
        logits = self.place(self.norm(features)).flatten(0, 1)  # (B·T, T)
        own = torch.arange(tokens, device=features.device).repeat(batch)
        return F.cross_entropy(logits.float(), own), {"place": float((logits.argmax(-1) == own).float().mean())}

    def loss(self, features: Tensor, tokens: Tensor, pooled: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Returns the sum of all cross-entropies, and accuracies where there is something to see."""
        token_logits, pooled_logits = self(features)
        logits_of = [
            *token_logits.flatten(0, 1).split(list(TOKEN_CLASSES.values()), -1),
            *pooled_logits.split(list(POOLED_CLASSES.values()), -1),
        ]
        targets = [*tokens.flatten(0, 1).T, *pooled.T]
        total = torch.zeros(())
        seen: dict[str, float] = {}
        for label, logits, target in zip(LABELS, logits_of, targets, strict=True):
            weight = _rarity(target)
            losses = F.cross_entropy(logits.float(), target, reduction="none")
            total = total + (losses * weight).sum() / weight.sum()
            there = target > 0
            seen[label] = float((logits.argmax(-1) == target)[there].float().mean()) if there.any() else float("nan")
        return total, seen


def _rarity(target: Tensor) -> Tensor:
    """Weights that give "nothing here" no more say than everything else together."""
    there = target > 0
    share = there.float().mean().clamp(0.02, 0.98)
    return torch.where(there, 1.0, (share / (1 - share)).clamp(max=1.0))
