"""Norms that fp16 can hold: in plain ops that no input overflows, or as Core ML's one op `layer_norm`.

In plain ops a norm squares its input, and in fp16 a square overflows above 255; real residuals reach 1e3 to 1e4. Two
ways out. `SafeChannelNorm` divides by the largest value first. `ChannelNorm` and `RMSNormGraph` are fused into one op,
whose input and output are fp16 and whose inside is the engine's business (on a host that sums in float32, values up to
fp16's own end, 65,504, are safe).

eps of `layer_norm`: it is stored in the tensors' dtype. 1e-5 becomes 1.0014e-5 and 1e-6 becomes 1.0133e-6 (both are
fp16 subnormals; coremltools raises to 1.1e-7 what would become 0). An engine that flushes subnormals computes with
eps 0: the difference is below fp16's own rounding while mean(x²) > 2e-3, and a zero row would be NaN, which is why
padding repeats a real row (docs/architecture.md).
It knows nothing of weights files or packages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.Module):
    """(x − mean) / √(variance + eps) over the channels of (1, C, h, w), without gain and bias; x stored as x · 2^−e.

    The ops are those, in that order, that coremltools fuses into `layer_norm(axes=[1])` (its pattern for
    channels-first transformers, ct#1972). Its form with gain divides the bias by the gain, so gain and bias go into
    the projection that follows instead (`export.encoder`). In plain fp16 ops it would overflow where `SafeChannelNorm`
    does not.
    """

    def __init__(self, eps: float, channels: int, exponent: int = 0) -> None:
        super().__init__()
        self.eps = eps * 4.0**-exponent  # the variance is scaled by 4^−e

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps)


# Sums inside a norm stay below it. Half of fp16's end, since what is summed is rounded up by at most 2⁻⁸ of itself.
LARGEST_SUM = 32_768.0
SMALLEST_MAXIMUM = 2.0**-12  # of max|x| · 2^−K, so that s is at most 2^12
SMALLEST_VARIANCE = 2.0**-14  # fp16's smallest normal number, which no engine flushes


def headroom(count: int) -> int:
    """Returns the largest K for which `count` squares of values up to 2^K sum to at most LARGEST_SUM."""
    return math.floor(math.log2(LARGEST_SUM / count) / 2)


def shrunk(x: Tensor, axis: int, power: int) -> tuple[Tensor, Tensor]:
    """Returns x · s and s, which keeps `axis` with length 1: s is about 2^power / max|x|, so that |x · s| ≤ 2^power.

    s is rsqrt(max|x| · 2^−power)²: all engines run rsqrt, the oldest no division by a tensor. Its rounding (a relative
    2⁻⁹ at most) is no error where both results are used, because both have it. s is at most 2^12, where all of x is
    below 2^(power − 12); for power ≥ 2 it is never subnormal, since 4 / 65,504 is not.
    """
    largest = x.abs().amax(axis, keepdim=True) * 2.0**-power
    root = torch.rsqrt(torch.maximum(largest, torch.tensor(SMALLEST_MAXIMUM)))
    scale = root * root
    return x * scale, scale


class SafeChannelNorm(nn.Module):
    """`ChannelNorm` in plain ops of which none leaves fp16, whatever finite fp16 numbers come in.

    y = x · s; c = y − mean(y); out = c / √(max(mean(c²) + (√eps · s)², 2⁻¹⁴)). A norm does not see a common factor, but
    for eps, which is scaled along: of x stored as X · 2^−e, √eps is √eps · 2^−e.

    Bounds, for C channels and K = `headroom(C)`, with the numbers of C = 1,536, K = 2: |y| ≤ 2^K = 4 and its sum at
    most C · 2^K = 6,144; |c| ≤ 2^(K + 1) = 8, and the sum of c² is at most that of y², C · 4^K = 24,576; √eps · s ≤ 13,
    its square 168; |out| ≤ √C = 39. The largest of all is the sum, below 32,768 for every C by the choice of K.
    No NaN: the root is taken of at least 2⁻¹⁴, so a row of zeros gives 0, flushed or not, and equal numbers what their
    mean's rounding leaves. The floor acts where the channels' spread is below 2^−(7 + K) of max|x|, 2 to 4 of fp16's
    last bits there; eps' part is larger than the floor where x is small, and irrelevant where it is large.
    Cost: y rounds once more than x. It is subnormal below max|x| · 2^−(14 + K), which is where one value so large
    beside all others makes of it an output of 2⁻¹⁴ · √C · 2^−K at most: 6e-4 at C = 1,536, flushed by some engines.
    """

    def __init__(self, eps: float, channels: int, exponent: int = 0) -> None:
        super().__init__()
        self.power = headroom(channels)
        self.root_eps = math.sqrt(eps) * 2.0**-exponent

    def forward(self, x: Tensor) -> Tensor:
        y, scale = shrunk(x, 1, self.power)
        centred = y - y.mean(1, keepdim=True)
        root_eps = scale * self.root_eps
        variance = (centred * centred).mean(1, keepdim=True) + root_eps * root_eps
        return centred * torch.rsqrt(torch.maximum(variance, torch.tensor(SMALLEST_VARIANCE)))


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
