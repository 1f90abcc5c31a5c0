"""First values of every tensor: alive, so that a network this small and this deep trains from nothing.

The classes' own defaults follow Apple's code: layer scales of 1e-5 leave every block dead for thousands of steps.
Here mixers start near the identity, layer scales at 0.3, and convolutions keep the signal's variance.
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
    else:
        fan_in = math.prod(value.shape[1:])
        value.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
        if MIXER.search(name):
            value.mul_(0.3)
            value[:, 0, value.shape[2] // 2, value.shape[3] // 2] += 1.0
        elif "patch_embed" in name or (".proj." in name and "token_mixer" not in name) or "fc1" in name:
            value.mul_(1.6)  # a GELU halves the variance
