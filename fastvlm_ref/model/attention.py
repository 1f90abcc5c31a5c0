"""Attention block (stages 4 and 5): full self-attention over the H·W positions, then a ConvFFN.

Only the attention has a norm before it; the ConvFFN has none.
Source: ml-fastvlm `mci.py`, MHSA and AttentionBlock.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm_ref.model.convffn import ConvFFN


class LayerNormChannel(nn.Module):
    """Layer norm over the channels of each position of (B, C, H, W), eps 1e-5."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normed = centred / torch.sqrt(variance + self.eps)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class MHSA(nn.Module):
    """Multi-head self-attention over all positions; head dim 32, no qkv bias."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.heads = channels // head_dim
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, P, C), P = H·W
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, P, D)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scale 1/√D
        mixed = mixed.transpose(1, 2).reshape(batch, height * width, channels)
        out: Tensor = self.proj(mixed).transpose(1, 2).reshape(batch, channels, height, width)
        return out


class AttentionBlock(nn.Module):
    """x += layer_scale_1 · attention(norm(x)); x += layer_scale_2 · ffn(x)."""

    def __init__(self, channels: int, hidden: int, head_dim: int) -> None:
        super().__init__()
        self.norm = LayerNormChannel(channels)
        self.token_mixer = MHSA(channels, head_dim)
        self.convffn = ConvFFN(channels, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))
        self.layer_scale_2 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        x = x + self.layer_scale_1 * self.token_mixer(self.norm(x))
        out: Tensor = x + self.layer_scale_2 * self.convffn(x)
        return out
