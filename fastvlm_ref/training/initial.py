"""First values of every tensor: alive, so that a network this small and this deep trains from nothing.

The classes' own defaults follow Apple's code: layer scales of 1e-5 leave every block dead for thousands of steps.
Here mixers start near the identity, wide kernels near a small blur, layer scales at 0.3, and the rest keeps the
signal's variance.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

MIXER = re.compile(r"network\.\d+\.(\d+\.token_mixer\.)?reparam_conv\.weight$")  # RepMixer, RepCPE


def initialise(model: nn.Module, seed: int) -> None:
    """Fills every parameter of `model` in place, one generator in the order of the names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            _fill(name, parameter, generator)


def _fill(name: str, value: Tensor, generator: torch.Generator) -> None:
    if "layer_scale" in name:
        value.fill_(0.3)
    elif name.endswith("bias"):
        value.zero_()
    elif value.ndim == 1:
        value.fill_(1.0)  # norm gains
    elif name.startswith("decoder."):
        value.normal_(0.0, 0.05 if "embed_tokens" in name else 1 / math.sqrt(value.shape[1]), generator=generator)
        if "o_proj" in name or "down_proj" in name:
            value.mul_(0.35)  # 1/√(2 · 4 layers), as GPT-2 scales what writes to the residual
    elif value.ndim == 4 and value.shape[1] == 1 and value.shape[2] > 1:
        _fill_depthwise(value, MIXER.search(name) is not None, generator)
    else:
        value.normal_(0.0, 1 / math.sqrt(math.prod(value.shape[1:])), generator=generator)
        if "patch_embed" in name or (".proj." in name and "token_mixer" not in name) or "fc1" in name:
            value.mul_(1.6)  # a GELU halves the variance


def _fill_depthwise(value: Tensor, keeps: bool, generator: torch.Generator) -> None:
    """Kernels (C, 1, k, k) gather around their middle: the identity for mixers, a small blur elsewhere, plus noise.

    Plain noise in a 7×7 kernel over an 8×8 map sends every place everywhere; colours then take thousands of steps.
    """
    side = value.shape[2]
    offset = torch.arange(side) - side // 2
    window = torch.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * (side / 6) ** 2))
    value.normal_(0.0, 1.0, generator=generator).mul_(window / window.norm() * (0.2 if keeps else 0.5))
    if keeps:
        value[:, 0, side // 2, side // 2] += 1.0
    else:
        value.add_(window / window.sum())
