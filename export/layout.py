"""What the two targets differ in: how the tensors of the language model lie, and which modules compute on them.

`export.decoder_ane` and `export.decoder_gpu` are the two. A graph holds no weights of its own: its parameters have the
checkpoint's names, and `export.decoder_weights` says what numbers belong there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Attention(nn.Module, ABC):
    """Attention of Q rows over the C positions of the state; q_proj, k_proj, v_proj, o_proj are its layout's."""

    q_proj: nn.Module
    o_proj: nn.Module

    @abstractmethod
    def write(self, x: Tensor, rope: Rope, cache: Tensor, position: Tensor) -> None:
        """Writes the keys and values of a normed x at `position` into the layer's two rows of the state."""

    @abstractmethod
    def attend(self, x: Tensor, rope: Rope, mask: Tensor, cache: Tensor) -> Tensor:
        """Returns the attention of a normed x over the C positions of its layer's rows, projected."""


class Layout(Protocol):
    """How the tensors of one target lie."""

    def state(self, rows: int) -> tuple[int, ...]:
        """The shape of a state of `rows` rows, two for each layer."""

    def attention(self, row: int) -> Attention:
        """Attention whose keys are row `row` of the state."""

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
