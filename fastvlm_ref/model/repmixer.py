"""RepMixer block (stages 1 to 3): a depthwise 3×3 that mixes positions, then a ConvFFN that mixes channels.

The mixer *replaces* x (its identity branch is inside the fused kernel); only the ConvFFN is residual.
Source: ml-fastvlm `mci.py`; FastViT, arXiv 2303.14189.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvlm_ref.model.convffn import ConvFFN


class RepMixer(nn.Module):
    """A depthwise k×k convolution with bias; also RepCPE, the position encoding before stages 4 and 5 (k = 7)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        out: Tensor = self.reparam_conv(x)
        return out


class RepMixerBlock(nn.Module):
    """x = mixer(x); x += layer_scale · ffn(x)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, 3)
        self.convffn = ConvFFN(channels, hidden)
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        x = self.token_mixer(x)
        out: Tensor = x + self.layer_scale * self.convffn(x)
        return out
