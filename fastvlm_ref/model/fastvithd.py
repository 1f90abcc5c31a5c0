"""FastViTHD, FastVLM's vision encoder: a convolutional stem and five stages, each halving the side.

Names follow Apple's checkpoint: `patch_embed`, `network.N`, `conv_exp`. `network` interleaves stages with what
stands between them: a down-sampling `proj` after each stage, and a RepCPE before each attention stage.
The CLIP head (`head.proj`) is not part of FastVLM and has no place here.
Source: ml-fastvlm `mci.py`; FastVLM, arXiv 2412.13303.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastvlm_ref.config import VisionConfig
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.mobileone import MobileOneBlock
from fastvlm_ref.model.repmixer import RepMixer, RepMixerBlock


class LargeKernelConv(nn.Module):
    """Depthwise 7×7, stride 2, doubling the channels, then GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lkb_reparam = nn.Conv2d(inputs, outputs, 7, 2, 3, groups=inputs)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, outputs, H/2, W/2)
        out: Tensor = self.activation(self.lkb_reparam(x))
        return out


class PatchEmbed(nn.Module):
    """Down-sampling between stages: large-kernel convolution, then a 1×1 MobileOne block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(LargeKernelConv(inputs, outputs), MobileOneBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, outputs, H/2, W/2)
        out: Tensor = self.proj(x)
        return out


def stem(width: int) -> nn.Sequential:
    """Returns the three convolutions that take (B, 3, N, N) to (B, width, N/4, N/4)."""
    return nn.Sequential(
        MobileOneBlock(3, width, 3, stride=2),
        MobileOneBlock(width, width, 3, stride=2, groups=width),
        MobileOneBlock(width, width, 1),
    )


def stage(config: VisionConfig, index: int) -> nn.Sequential:
    """Returns stage `index`: its RepMixer or attention blocks, (B, C, H, W) -> same."""
    width, hidden = config.widths[index], config.mlp_widths[index]
    if config.attention_stages[index]:
        return nn.Sequential(*(AttentionBlock(width, hidden, config.head_dim) for _ in range(config.depths[index])))
    return nn.Sequential(*(RepMixerBlock(width, hidden) for _ in range(config.depths[index])))


class FastViTHD(nn.Module):
    """Pixels (B, 3, N, N) in [0, 1], N a multiple of 64 -> features (B, T, 3072), T = (N/64)²."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = stem(config.widths[0])
        parts: list[nn.Module] = []
        for index, width in enumerate(config.widths):
            if index:
                parts.append(PatchEmbed(config.widths[index - 1], width))
            if config.attention_stages[index]:
                parts.append(RepMixer(width, 7))  # RepCPE
            parts.append(stage(config, index))
        self.network = nn.ModuleList(parts)
        last = config.widths[-1]
        self.conv_exp = MobileOneBlock(last, config.features, 3, groups=last, se_channels=config.se_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, N, N) in 0…1 -> features (B, T, 3072), T = (N/64)² places row by row."""
        x = self.patch_embed(pixels)  # (B, C0, N/4, N/4)
        for part in self.network:
            x = part(x)
        x = self.conv_exp(x)  # (B, 3072, N/64, N/64)
        out: Tensor = x.flatten(2).transpose(1, 2)  # (B, T, 3072), row by row
        return out
