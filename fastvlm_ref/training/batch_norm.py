"""Batch norm behind every fused convolution while the encoder learns, folded back before it is saved.

Notable choices:
- FastViT trains its branches with batch norms and ships them folded; one branch with its norm is enough at this size;
- without them the trunk of the first three stages has no norm at all;
- folding is exact: eval mode computes the same before and after, up to rounding.
It does not know training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FUSED = ("reparam_conv", "lkb_reparam")  # the checkpoint's names of convolutions that were trained with a norm


class NormedConv(nn.Module):
    """A convolution without bias, then batch norm."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]),
            (conv.stride[0], conv.stride[1]), conv.kernel_size[0] // 2, groups=conv.groups, bias=False,
        )  # fmt: skip
        self.conv.weight.data.copy_(conv.weight.data)
        self.bn = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', H/stride, W/stride)
        out: Tensor = self.bn(self.conv(x))
        return out

    def folded(self) -> nn.Conv2d:
        """Returns one convolution with bias that computes what eval mode computes here."""
        conv, bn = self.conv, self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        with torch.no_grad():
            folded = nn.Conv2d(
                conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]),
                (conv.stride[0], conv.stride[1]), conv.kernel_size[0] // 2, groups=conv.groups,
            )  # fmt: skip
            folded.weight.copy_(conv.weight * gain[:, None, None, None])
            assert folded.bias is not None
            folded.bias.copy_(bn.bias - bn.running_mean * gain)
        return folded


def add_batch_norms(encoder: nn.Module) -> None:
    """Puts a batch norm behind every convolution that a checkpoint holds fused; its bias replaces theirs."""
    for parent, name in _places(encoder, nn.Conv2d):
        setattr(parent, name, NormedConv(getattr(parent, name)))


def fold_batch_norms(encoder: nn.Module) -> None:
    """Folds them back, so that names and shapes are the checkpoint's again."""
    for parent, name in _places(encoder, NormedConv):
        setattr(parent, name, getattr(parent, name).folded())


def _places(encoder: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str]]:
    return [
        (parent, name)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if name in FUSED and isinstance(child, kind)
    ]
