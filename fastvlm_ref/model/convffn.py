"""The feed-forward half of every FastViTHD block: 7×7 depthwise convolution, batch norm, two 1×1 convolutions.

Source: ml-fastvlm `mci.py`, ConvFFN. Batch norm is kept apart here, as in the checkpoint; `export` folds it.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class ConvFFN(nn.Module):
    """fc2(gelu(fc1(bn(depthwise 7×7(x)))))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.conv = nn.Sequential(OrderedDict(conv=depthwise, bn=nn.BatchNorm2d(channels)))
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        out: Tensor = self.fc2(self.act(self.fc1(self.conv(x))))
        return out
