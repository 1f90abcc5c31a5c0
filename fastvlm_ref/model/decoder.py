"""The language model: a Qwen2 or Llama decoder, embeddings in, hidden states out.

One class covers both families: Qwen2 has a bias on q, k and v and theta 1e6; Llama/Vicuna has none and 1e4.
Rotary angles are always computed in float32 (theta 1e6 needs it), whatever the weights' dtype.
It knows nothing of text or images: rows of embeddings come in, and the head is a separate call because only
the last position needs it.
Source: Qwen2 (arXiv 2407.10671), Llama (arXiv 2302.13971); names as in their checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.kv_cache import KVCache


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight, the mean over the last axis in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (…, H) -> same
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


def rope_tables(config: TextConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cos and sin, float32 (S, D), for int positions (S,); both halves of D hold the same angles."""
    exponents = -torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    frequencies = config.rope_theta**exponents
    angles = positions.float()[:, None] * frequencies  # (S, D/2)
    angles = torch.cat((angles, angles), -1)  # (S, D)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary embedding to (B, heads, S, D): x·cos + (−x₂, x₁)·sin."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def surroundings(config: TextConfig, embeds: Tensor, past: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Returns what every layer takes beside rows (B, S, H) that stand behind `past` positions: rope and mask.

    rope: cos and sin (S, D) in the rows' dtype. mask: (S, past + S), True where a query may look, at itself and at
    what came before.
    """
    length = embeds.shape[1]
    positions = torch.arange(past, past + length, device=embeds.device)
    cos, sin = rope_tables(config, positions)
    mask = torch.arange(past + length, device=embeds.device) <= positions[:, None]
    return (cos.to(embeds.dtype), sin.to(embeds.dtype)), mask


class Attention(nn.Module):
    """Causal grouped-query attention: `heads` queries share `kv_heads` keys and values."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        query_width = config.heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        """x (B, S, H) -> the same shape; keys and values of these rows go into the cache where there is one."""
        batch, length, _ = x.shape
        split = (batch, length, -1, self.config.head_dim)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), *rope)  # (B, heads, S, D)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), *rope)  # (B, kv_heads, S, D)
        v = self.v_proj(x).view(split).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, k, v)  # (B, kv_heads, past + S, D)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, H) -> same
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class EmbeddingTable(nn.Embedding):
    """An embedding that draws no numbers on the meta device, where torch loads its compiler (1 s) to draw none."""

    def reset_parameters(self) -> None:
        if self.weight.device.type != "meta":
            super().reset_parameters()


class Decoder(nn.Module):
    """Embeddings (B, S, H) -> final hidden states (B, S, H); `head` turns those into logits (B, S, V)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = EmbeddingTable(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_head:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeds: Tensor, cache: KVCache | None = None) -> Tensor:
        """embeds (B, S, H), behind what the cache holds -> final hidden states (B, S, H), for `head`."""
        rope, mask = surroundings(self.config, embeds, cache.length if cache is not None else 0)
        x = embeds
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, mask, cache, index)
        if cache is not None:
            cache.advance(embeds.shape[1])
        out: Tensor = self.norm(x)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Returns logits (B, S, V) of final hidden states (B, S, H)."""
        out: Tensor = self.lm_head(hidden)
        return out
