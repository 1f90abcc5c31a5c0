"""Norms that fp16 can hold: in plain ops that no input overflows, or as Core ML's one op `layer_norm`.

In plain ops a norm squares its input, and in fp16 a square overflows above 255; real residuals reach 1e3 to 1e4. Inside
one `layer_norm` op squares are the engine's business: where it adds in float32, as a host or a GPU does, any fp16 input
is safe. For the Neural Engine, of which nobody knows, inputs are made small first (`shrunk`): the encoder's few norms
then stay in plain ops (`SafeChannelNorm`), the decoder's many end in the op, which rounds once (`BoundedRMSNorm`).

eps of `layer_norm`: it is stored in the tensors' dtype. 1e-5 becomes 1.0014e-5 and 1e-6 becomes 1.0133e-6 (both are
fp16 subnormals; coremltools raises to 6.0e-8 what would become 0). An engine that flushes subnormals computes with
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


def shrunk(x: Tensor, axis: int, power: int, smallest: float = SMALLEST_MAXIMUM) -> tuple[Tensor, Tensor]:
    """Returns x · s and s, which keeps `axis` with length 1: s is about 2^power / max|x|, so that |x · s| ≤ 2^power.

    s is rsqrt(max|x| · 2^−power)²: all engines run rsqrt, the oldest no division by a tensor. Its rounding (a relative
    2⁻⁹ at most) is no error where both results are used, because both have it. s is at most 2^12, where all of x is
    below 2^(power − 12); for power ≥ 2 it is never subnormal, since 4 / 65,504 is not. smallest: of max|x| · 2^−power;
    a power of 4 of it gives smaller rows an s that is a power of 2, exactly.
    """
    largest = x.abs().amax(axis, keepdim=True) * 2.0**-power
    root = torch.rsqrt(torch.maximum(largest, torch.tensor(smallest)))
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


class BoundedRMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the channels of (1, H, 1, Q), as layer norm of [y, −y], y = x · s.

    The mean of [y, −y] is exactly 0 and its variance mean(y²); a norm does not see s, but for eps. Rows within
    ±2^K, K = `headroom(2H)`, keep their size: s is 1. Bounds, for any finite fp16 x:
    - |y| ≤ 2^K, and Σ y² over both halves ≤ 2H · 4^K ≤ 32,768: K is 2 up to H = 1,024 and 1 up to 4,096. s is rounded:
      for H = 1,024 and 4,096, where 2H · 4^K is 32,768 itself, the sum over a row of one value alone reaches 32,832;
    - s is subnormal in a row beyond 2^(14 + K), which an engine that flushes makes zeros: past what may be stored for
      K ≥ 1, but 16,384 for H > 4,096, which no official size has;
    - in a row beyond 2^K the variance is at least 4^K / H, so eps, which is not scaled along, changes the result by
      less than eps · H / (2 · 4^K): 2.8e-5 for 0.5B, 4.5e-4 for 7B, and that only in a row of one value and zeros.
    exponent: x comes as x · 2^−exponent; rows within ±2^K get it back, so that eps means what it did.
    safe=False leaves x as it is, and the squares to the engine.
    """

    def __init__(self, width: int, eps: float, exponent: int = 0, *, safe: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, 1, 1), requires_grad=False)
        self.power, self.exponent, self.safe = headroom(2 * width), exponent, safe
        self.norm = ChannelNorm(eps, width, 0 if safe else exponent)

    def forward(self, x: Tensor) -> Tensor:  # (1, H, 1, Q) -> same
        y = shrunk(x, 1, self.power, 2.0**-self.exponent)[0] if self.safe else x
        normed: Tensor = self.norm(torch.cat((y, -y), 1)).chunk(2, 1)[0]
        return normed * self.weight


class RMSNormGraph(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last axis, as layer norm of [x, −x].

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
