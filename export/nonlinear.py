"""What a scale cannot cross: GELU, sigmoid and softmax of a tensor that is stored as y = x · 2^−e.

2^e · y may lie beyond fp16, but each of the three is flat or straight long before; so y is clamped first. The forms are
exact, not close: where the clamp acts, the plain op of float32 or fp16 gives the same number. Where e is 0 the plain op
is used.

**GELU(x) · 2^−e** = 2^−e · gelu(2^e · clamp(y, −c, c)) + (max(y, c) − c), with c = 32 in the units of y, and `gelu`
the exact op. No intermediate is larger than c · 2^e or than y. In real numbers the error is that of Φ outside the
clamp, |x| ≥ 32 · 2^e ≥ 64, where 1 − Φ(|x|) < 1e-890. In fp16 and in float32 there is none beside the gelu op's own:
- inside, 2^e · y is x, exactly, and 0 is added; the factor 2^−e is exact but where the result is stored subnormal (it
  then rounds, by at most 2⁻²⁵, as any value does that is stored in those units);
- above, gelu(c · 2^e) is c · 2^e, and y − c is exact: c is a multiple of the spacing of every fp16 number (it reaches
  32, which is why c is not smaller) and of every float32 number below 2²⁹; their sum is y again;
- below, gelu(−c · 2^e) is −0, and so is gelu(x).

**σ(x)** = sigmoid(2^e · clamp(y, −c, c)) with c · 2^e = 128: beyond ±104 float32 itself gives 1 or 0.

**softmax(x)** = softmax(2^e · max(y − max y, −c)) with c · 2^e = 128: e^−104 is 0 in float32. For scores within ±16,384
y − max y is at least −32,768; for arbitrary fp16 scores it reaches −131,008, −inf there, which the clamp takes up. The
sum inside the op, with an exponent or without, has at most 128² = 16,384 terms (stage 4 at the largest side, 4,096
pixels), none above 1.

Tests hold all of it on every fp16 number for every exponent, and on float32. 2^e · c must be a number of fp16: e ≤ 10,
for softmax e ≤ 15. clip, mul, gelu, sub, add, reduce_max, maximum, sigmoid and softmax are native to the Neural
Engine from M1 on (measured by ANEForge: sbryngelson/ANEForge, docs, op catalogue). It knows nothing of graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GELU_CLAMP = 32.0  # in units of y
EXP_CLAMP = 128.0  # in units of x


class Gelu(nn.Module):
    """GELU of a tensor stored as x · 2^−exponent, in the same units."""

    def __init__(self, exponent: int = 0) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, y: Tensor) -> Tensor:
        return gelu(y, self.exponent)


def gelu(y: Tensor, exponent: int) -> Tensor:
    """Returns GELU(y · 2^exponent) · 2^−exponent, of any shape."""
    if exponent == 0:
        return F.gelu(y)
    inside = F.gelu(y.clamp(-GELU_CLAMP, GELU_CLAMP) * 2.0**exponent) * 2.0**-exponent
    return inside + (torch.maximum(y, torch.tensor(GELU_CLAMP)) - GELU_CLAMP)


def sigmoid(y: Tensor, exponent: int) -> Tensor:
    """Returns σ(y · 2^exponent), of any shape."""
    if exponent == 0:
        return torch.sigmoid(y)
    clamp = EXP_CLAMP * 2.0**-exponent
    return torch.sigmoid(y.clamp(-clamp, clamp) * 2.0**exponent)


def softmax(y: Tensor, exponent: int) -> Tensor:
    """Returns softmax(y · 2^exponent) over the last axis."""
    if exponent == 0:
        return torch.softmax(y, -1)
    below = torch.maximum(y - y.amax(-1, keepdim=True), torch.tensor(-EXP_CLAMP * 2.0**-exponent))
    return torch.softmax(below * 2.0**exponent, -1)
