"""MobileOne convolution and squeeze-excite, in the fused form in which FastVLM ships them.

`reparam_conv` is what Apple's training branches (3×3, 1×1, identity, each with batch norm) collapse to;
`fastvlm_ref.checkpoint.fuse` collapses the branches of checkpoints that still hold them.
Source: ml-fastvlm `llava/model/multimodal_encoder/mobileclip/mci.py`; MobileOne, arXiv 2206.04040.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SEBlock(nn.Module):
    """Squeeze-excite: x · σ(expand(relu(reduce(mean(x)))))."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        gate = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(gate))))


class MobileOneBlock(nn.Module):
    """One convolution, an optional squeeze-excite, then exact GELU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, se_channels: int = 0
    ) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.se = SEBlock(outputs, se_channels) if se_channels else nn.Identity()
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, outputs, H/stride, W/stride)
        out: Tensor = self.activation(self.se(self.reparam_conv(x)))
        return out
