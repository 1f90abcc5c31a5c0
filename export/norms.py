"""Norms written so that Core ML's `layer_norm` op computes them, whose inside is not ours to round.

In plain ops a norm squares its input, and in fp16 a square overflows above 255; real residuals reach 1e3 to 1e4.
As one op the squares never leave the op: its input and output are fp16, what is between is the engine's business
(on a host that sums in float32, values up to fp16's own end, 65,504, are safe).

eps: the op's epsilon is stored in the tensors' dtype. 1e-5 becomes 1.0014e-5 and 1e-6 becomes 1.0133e-6 (both are
fp16 subnormals; coremltools raises to 1.1e-7 what would become 0). An engine that flushes subnormals computes with
eps 0: the difference is below fp16's own rounding while mean(x²) > 2e-3, and a zero row would be NaN, which is why
padding repeats a real row (docs/architecture.md).
It knows nothing of weights files or packages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.Module):
    """(x − mean) / √(variance + eps) over the channels of (1, C, h, w), without gain and bias.

    The ops are those, in that order, that coremltools fuses into `layer_norm(axes=[1])` (its pattern for
    channels-first transformers, ct#1972). Its form with gain divides the bias by the gain, so gain and bias go into
    the projection that follows instead (`export.encoder`).
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps)


class RMSNormGraph(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last axis, as layer norm of [x, −x].

    The mean of [x, −x] is exactly 0 and its variance exactly mean(x²), so the first half of the result is RMSNorm.
    Source: the form that Anemll uses on the Neural Engine.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.width = weight.shape[0]
        self.weight = nn.Parameter(torch.cat((weight, weight)).detach(), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (1, Q, H) -> same
        mirrored = torch.cat((x, -x), -1)  # (1, Q, 2H)
        return F.layer_norm(mirrored, (2 * self.width,), self.weight, None, self.eps)[..., : self.width]
