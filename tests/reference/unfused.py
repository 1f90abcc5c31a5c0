"""The training form of the vision tower's blocks, written from the papers, to test fusing against.

Every block is a plain sum of branches, each a convolution and a batch norm, in modules whose parameters have the names
of Apple's code. Nothing here shares a line with the package.
Source: MobileOne, arXiv 2206.04040; FastViT, arXiv 2303.14189, section 3; RepLKNet, arXiv 2203.06717.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvBN(nn.Module):
    """A convolution without bias and a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class MobileOne(nn.Module):
    """Parallel k×k branches, a 1×1 branch where k > 1, and a batch norm where input and output match; no activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 1,
        scale: bool = True,
    ) -> None:
        super().__init__()
        if branches:
            self.rbr_conv = nn.ModuleList(ConvBN(inputs, outputs, kernel, stride, groups) for _ in range(branches))
        if kernel > 1 and scale:
            self.rbr_scale = ConvBN(inputs, outputs, 1, stride, groups)
        if inputs == outputs and stride == 1:
            self.rbr_skip = nn.BatchNorm2d(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in (*getattr(self, "rbr_conv", ()), *self._single()))

    def _single(self) -> list[nn.Module]:
        return [getattr(self, name) for name in ("rbr_scale", "rbr_skip") if hasattr(self, name)]


class LargeKernel(nn.Module):
    """A large and a small depthwise kernel side by side."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 7, small: int = 3) -> None:
        super().__init__()
        self.lkb_origin = ConvBN(inputs, outputs, kernel, 2, inputs)
        if small:
            self.small_conv = ConvBN(inputs, outputs, small, 2, inputs)

    def forward(self, x: Tensor) -> Tensor:
        large = self.lkb_origin(x)
        return large + self.small_conv(x) if hasattr(self, "small_conv") else large


class Mixer(nn.Module):
    """x + layer_scale · (mixer(x) − norm(x))."""

    def __init__(self, channels: int, scaled: bool = True) -> None:
        super().__init__()
        self.mixer = MobileOne(channels, channels, 3, groups=channels)
        self.norm = MobileOne(channels, channels, 3, groups=channels, branches=0, scale=False)
        if scaled:
            self.layer_scale = nn.Parameter(0.3 * (1 + 0 * self.norm.rbr_skip.weight.detach()[:, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        change = self.mixer(x) - self.norm(x)
        return x + self.layer_scale * change if hasattr(self, "layer_scale") else x + change


class Position(nn.Module):
    """pe(x) + x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pe = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pe(x) + x
