"""The constant part of a key: taken away, because softmax does not see it and fp16 cannot hold it.

Qwen2 adds biases of 1e2 to 1e3 to a few channels of the keys, of pairs that hardly rotate. A key at position j is
R_j(W x + b), and where R_j turns b by little, every score of a query q is the same large number q·b plus the small one
that matters. fp16 rounds a score near 1,000 to halves. Softmax takes away what all scores of a row have in common, so
R_j(W x + b) − b gives the same weights, and is computed without ever adding b:

    R_j(W x) + b ⊙ (cos_j − 1) + swap(b) ⊙ sin_j

Only pairs that turn by less than 60° over the whole context are treated so: there |R_j b − b| < |b| at every position.
For contexts of up to 2,048 positions they are those of 2,048, which is what a scan looks at (`export.ranges.decoder`).
Exact in real numbers, and in fp16 the smaller the angle, the better. Biases of other pairs and small ones stay where
they were: three more roundings would cost more than they save.
It knows neither graphs nor files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

LARGEST_TURN = math.pi / 3
LEAST_CONTEXT = 2048
# Keys without bias have values of a few units. fp16 rounds k + b by up to 2⁻¹¹ of b: beyond this more than k itself.
LEAST_BIAS = 8.0


def slow_channels(text: TextConfig, context: int) -> Tensor:
    """Returns which channels of a head turn by less than 60° over max(`context`, 2,048) positions: bool (D,)."""
    exponents = -torch.arange(0, text.head_dim, 2).double() / text.head_dim
    slow = text.rope_theta**exponents * (max(context, LEAST_CONTEXT) - 1) < LARGEST_TURN
    return torch.cat((slow, slow))  # channels c and c + D/2 are a pair


def key_shift(bias: Tensor, text: TextConfig, context: int) -> Tensor:
    """Returns the part of k_proj's bias that every key goes without: float32 (kv_heads, D), zeros elsewhere."""
    heads = bias.float().reshape(text.kv_heads, text.head_dim)
    large = torch.maximum(heads.abs(), swapped(heads).abs()) > LEAST_BIAS  # of a pair either
    return torch.where(slow_channels(text, context) & large, heads, torch.zeros(()))


def swapped(heads: Tensor) -> Tensor:
    """Returns (…, D) with its halves exchanged: what is multiplied by the sine, whose first half is negative."""
    first, second = heads.chunk(2, -1)
    return torch.cat((second, first), -1)


def shifts_keys(decoder: Decoder, context: int) -> bool:
    """Returns whether any layer's keys have a bias that fp16 should not add; reads them all."""
    text = decoder.config
    if not text.qkv_bias:
        return False
    return any(bool(key_shift(k_bias(decoder, layer), text, context).any()) for layer in range(text.layers))


def k_bias(decoder: Decoder, layer: int) -> Tensor:
    """Returns the bias of a layer's keys as the checkpoint has it, float32 (kv_heads · D,)."""
    _, pieces = stored(decoder, f"layers.{layer}.self_attn.k_proj.bias")
    return torch.cat([piece.float().reshape(-1) for piece in pieces()])
