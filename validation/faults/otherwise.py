"""Modules of the reference that do one thing otherwise.

`Attending` is `fastvlm_ref.model.decoder.Attention` written once more, with places to change: a clean one gives the
same numbers (a test says so). A module gets a method by becoming an instance of a class of its own, derived from the
one it had: others of that class stay as they are, and a copy that a rung makes of the module does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm_ref.model.decoder import Attention, DecoderLayer, rotate
from fastvlm_ref.model.kv_cache import KVCache
from validation.faults.bench import Bench
from validation.faults.layers import LAYER

Rope = tuple[Tensor, Tensor]
Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attending:
    """What is done otherwise.

    turn, turn_keys: how queries and keys are rotated. masked: what becomes of the mask (Q, S). spread: how keys and
    values (B, kv_heads, S, D) reach the query heads. reads: the layer whose rows of the cache it reads, counted from
    its own.
    """

    turn: Rotation = rotate
    turn_keys: Rotation | None = None
    masked: Callable[[Tensor], Tensor] = lambda mask: mask
    spread: Callable[[Tensor, int], Tensor] = lambda x, group: x.repeat_interleave(group, 1)
    scale: float | None = None
    reads: int = 0

    def __call__(
        self, attention: Attention, x: Tensor, rope: Rope, mask: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Stands for `Attention.forward`."""
        batch, length, _ = x.shape
        config = attention.config
        split = (batch, length, -1, config.head_dim)
        q = self.turn(attention.q_proj(x).view(split).transpose(1, 2), *rope)
        k = (self.turn_keys or self.turn)(attention.k_proj(x).view(split).transpose(1, 2), *rope)
        v = attention.v_proj(x).view(split).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, k, v)
            k, v = (kept[layer + self.reads][:, :, : k.shape[2]] for kept in (cache.keys, cache.values))
        k, v = (self.spread(part, config.heads // config.kv_heads) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.masked(mask), scale=self.scale)
        return cast(Tensor, attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)))


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates neighbouring channels, where the checkpoint's pairs are half a head apart."""
    half = cos.shape[-1] // 2
    cos, sin = (table[..., :half].repeat_interleave(2, -1) for table in (cos, sin))
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cos + turned * sin


def one_further(angles: Rope) -> Rotation:
    """Returns a rotation by one position more than that of the tables; `angles`: cos and sin (1, D) of position 1."""

    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(rotate(x, cos, sin), *angles)

    return turn


def tiled(x: Tensor, group: int) -> Tensor:
    """Gives query head h the keys of head h modulo kv_heads, where the checkpoint groups neighbours."""
    return x.repeat(1, group, 1, 1)


def instead(module: nn.Module, method: Callable[..., Any], name: str = "forward") -> None:
    """Gives one module of the reference another method, by default another forward pass; its copies have it too."""
    module.__class__ = type(type(module).__name__, (type(module),), {name: method})


def layer_of(bench: Bench, number: int = LAYER) -> DecoderLayer:
    """Returns a layer of the reference's decoder."""
    return cast(DecoderLayer, bench.model.decoder.layers[number])


def attending(bench: Bench, **otherwise: Any) -> None:
    """Gives one layer of the reference another attention: what `Attending` has otherwise."""
    other = Attending(**otherwise)
    instead(layer_of(bench).self_attn, lambda *taken: other(*taken))
