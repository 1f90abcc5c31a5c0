"""What the two targets differ in: how the tensors of the language model lie, and which modules compute on them.

`export.decoder_ane` and `export.decoder_gpu` are the two. A graph holds no weights of its own: its parameters have the
checkpoint's names, and `export.decoder_weights` says what numbers belong there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from export.protection import PROTECTED, Protection
from fastvlm_ref.config import TextConfig

Rope = tuple[Tensor, ...]


@dataclass(frozen=True)
class GraphSizes:
    """One function's sizes: the decoder's, Q rows, C positions.

    first: of the first package of a chain. shifts_keys: keys go without the constant part of their bias
    (`export.key_shift`).
    """

    text: TextConfig
    query: int
    context: int
    protection: Protection = PROTECTED
    first: bool = True
    shifts_keys: bool = False


class Layer(Protocol):
    """A decoder layer of either layout."""

    def __call__(self, x: Tensor, rope: Rope, mask: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        """x += attention(norm(x)); x += mlp(norm(x)), with the state written on the way."""

    def fill(self, x: Tensor, rope: Rope, cache: Tensor, position: Tensor) -> Tensor:
        """Writes the state and nothing else; returns a value of it (1, 1, 1), so that the write has a reader."""


class Layout(Protocol):
    """How the tensors of one target lie."""

    def state(self, rows: int) -> tuple[int, ...]:
        """The shape of a state of `rows` rows, two for each layer."""

    def layer(self, row: int) -> nn.Module:
        """A layer whose keys are row `row` of the state."""

    def norm(self) -> nn.Module:
        """An RMSNorm of the residual stream."""

    def linear(self, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
        """A projection, without numbers."""

    def enter(self, embeds: Tensor) -> Tensor:
        """What comes from outside, (1, Q, H), as the layers take it."""

    def leave(self, x: Tensor) -> Tensor:
        """Hidden states or logits as the world outside takes them, (1, Q, width)."""

    def rotary(self, cos: Tensor, sin: Tensor) -> Rope:
        """The host's tables (1, 1, Q, D) as the layers take them."""

    def mask(self, mask: Tensor) -> Tensor:
        """The host's mask (1, 1, Q, C) as the layers take it."""
