"""Norms that fp16 can hold: a square overflows above 255, and real residuals reach 1e3 to 1e4.

All end in one `layer_norm` op, whose squares never leave it. What happens inside is the engine's business: where it
sums in float32, as a host or a GPU does, any fp16 input is safe; where it sums in fp16, only small ones are. So for the
Neural Engine rows are made small first (`bounded`): then no sum inside leaves fp16, on any engine, whatever comes in.

eps of the op is stored in the tensors' dtype: 1e-5 becomes 1.0014e-5 and 1e-6 becomes 1.0133e-6 (both are fp16
subnormals; coremltools raises to 1.1e-7 what would become 0). An engine that flushes subnormals computes with eps 0:
the difference is below fp16's own rounding while mean(x²) > 2e-3, and a zero row would be NaN, which is why padding
repeats a real row (docs/architecture.md).
It knows nothing of weights files or packages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 65504.0  # of fp16


def largest_row(width: int) -> float:
    """Returns the power of two B for which `width` squares of values up to B add up to no more than fp16 holds."""
    return float(2.0 ** math.floor(math.log2(math.sqrt(LARGEST / width))))


def bounded(x: Tensor, largest: float, exponent: int = 0) -> Tensor:
    """Returns x (1, H, …) · 2^exponent divided by what brings its channels into [−largest, largest], or by 1.

    No value on the way exceeds max(|x|, largest): x is divided by max(max|x| / largest, 2^−exponent) in one step.
    """
    divisor = torch.maximum(x.abs().amax(1, keepdim=True) * (1 / largest), torch.tensor(2.0**-exponent))
    return x / divisor


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


class BoundedRMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the channels of (1, H, 1, Q), as layer norm of [y, −y], y = `bounded` x.

    A norm does not see what its row is divided by, but for eps. Bounds, for any finite fp16 x:
    - inside, |y| ≤ B and Σ y² ≤ 2H·B² ≤ 65,504: B is 4 up to H = 2,047 and 2 up to 8,188;
    - rows within B are not divided; in others mean(x²) ≥ B²/H, so eps, which is not divided along, changes the result
      by less than eps·H / 2B²: 2.8e-5 for 0.5B, 4.5e-4 for 7B, and that only in a row of one value and zeros.
    exponent: x comes as x · 2^−exponent; rows within B get it back, so that eps means what it did.
    """

    def __init__(self, width: int, eps: float, exponent: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, 1, 1), requires_grad=False)
        self.largest, self.exponent = largest_row(2 * width), exponent
        self.norm = ChannelNorm(eps)

    def forward(self, x: Tensor) -> Tensor:  # (1, H, 1, Q) -> same
        y = bounded(x, self.largest, self.exponent)
        mirrored = torch.cat((y, -y), 1)  # (1, 2H, 1, Q)
        normed: Tensor = self.norm(mirrored).chunk(2, 1)[0]
        return normed * self.weight


class PlainRMSNorm(nn.Module):
    """The same as it stands in papers: in fp16 its squares overflow above 255. What is left without protection."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, 1, 1), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (1, H, 1, Q) -> same
        return x * torch.rsqrt((x * x).mean(1, keepdim=True) + self.eps) * self.weight


class RMSNormGraph(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last axis, as layer norm of [x, −x].

    The mean of [x, −x] is exactly 0 and its variance exactly mean(x²), so the first half of the result is RMSNorm.
    Source: the form that Anemll uses on the Neural Engine. exponent: x comes as x · 2^−exponent, and eps follows it.
    """

    def __init__(self, width: int, eps: float, exponent: int = 0) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(2 * width), requires_grad=False)  # the gain twice, for x and −x
        self.eps = eps * 4.0**-exponent

    def forward(self, x: Tensor) -> Tensor:  # (1, Q, H) -> same
        mirrored = torch.cat((x, -x), -1)  # (1, Q, 2H)
        return F.layer_norm(mirrored, (2 * self.width,), self.weight, None, self.eps)[..., : self.width]
