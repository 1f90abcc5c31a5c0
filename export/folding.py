"""What goes into a convolution's weights before it ships: batch norm, layer scales, exact powers of two.

Products are computed in float64 and rounded once to float32; a power of two is exact in both. Whether fp16 then holds
the weights as well as it did is asked in every output channel. A power that would push a channel below what fp16 holds
in full, or beyond its end, stays an op of its own (`PowerConv`): x · 2^p is exact in fp16 where it is not subnormal.
The bias needs no such question: in fp16 it errs by at most 2⁻²⁵ of the units in which the result is stored, which is
below half a step of every result that is not itself subnormal.
It knows neither graphs nor sites.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastvlm_ref.checkpoint.tensors import own_memory

# Below 2⁻¹⁴ fp16 is subnormal and rounds by up to 2⁻²⁵ absolute. In a channel whose largest weight is 2⁻¹⁰ that is at
# most 2⁻¹⁵ of the largest, below the 2⁻¹² by which fp16 rounds the largest itself.
SMALLEST_FOLDED = 2.0**-10
LARGEST_FOLDED = 32_768.0  # fp16 ends at twice that
ROWS = 64  # of a weight that are folded at a time


class PowerConv(nn.Conv2d):
    """A convolution of x · `before`, its result times `after`: powers of two that its weights do not hold.

    reads, writes: the exponents of what comes in and goes out. takes, gives: those of what the convolution itself
    takes, behind `before`, and gives, ahead of `after`.
    """

    before: float = 1.0
    after: float = 1.0
    reads: int = 0
    writes: int = 0

    @property
    def takes(self) -> int:
        """The exponent of the convolution's own input."""
        return self.reads if self.before == 1 else self.writes

    @property
    def gives(self) -> int:
        """The exponent of the convolution's own result."""
        return self.writes if self.after == 1 else self.reads

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x if self.before == 1 else x * self.before)
        return out if self.after == 1 else out * self.after


def make_conv(like: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> PowerConv:
    """Returns a convolution of `like`'s geometry with a float32 `weight` and `bias` in float32."""
    channels, kernel = weight.shape[1] * like.groups, (weight.shape[2], weight.shape[3])
    with torch.device("meta"):
        conv = PowerConv(
            channels, weight.shape[0], kernel, cast(tuple[int, int], like.stride), cast(tuple[int, int], like.padding),
            groups=like.groups, bias=bias is not None,
        )  # fmt: skip
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    return conv


def pointwise(weight: Tensor, bias: Tensor | None) -> PowerConv:
    """Returns a linear layer's weight (outputs, inputs) as a 1×1 convolution."""
    return make_conv(nn.Conv2d(1, 1, 1), weight[:, :, None, None], bias)


def folded(weight: Tensor, gain: Tensor) -> Tensor:
    """Returns weight · gain (broadcast) in float32, computed in float64 and rounded once.

    A few rows at a time, into pages of its own: float64 copies of whole weights would stay with malloc, 0.2 GB of them.
    """
    out = own_memory(weight.numel()).view(weight.shape)
    for into, rows, gains in zip(*(each.split(ROWS) for each in (out, weight, gain.expand_as(weight))), strict=True):
        into.copy_(rows.double() * gains.double())
    return out


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> PowerConv:
    """Returns one convolution that computes norm(conv(x)); conv has no bias."""
    assert norm.running_mean is not None  # only a norm without statistics has none; Apple's all have
    assert norm.running_var is not None
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * gain
    return make_conv(conv, folded(conv.weight, gain[:, None, None, None]), bias)


def largest(weight: Tensor) -> Tensor:
    """Returns the largest magnitude of a weight (outputs, …) in each output channel."""
    return weight.abs().flatten(1).amax(1)


def folds(weight: Tensor) -> bool:
    """Whether fp16 holds a folded weight (outputs, …) as well as an unfolded one, in every output channel."""
    return bool((largest(weight) >= SMALLEST_FOLDED).all())


def rescaled(conv: nn.Conv2d, reads: int, writes: int) -> nn.Conv2d:
    """Returns a convolution of x · 2^−reads whose result is that of `conv` times 2^−writes, in real numbers exactly.

    W' = W · 2^(reads − writes), b' = b · 2^−writes. Where fp16 would hold W' less well than W, the input is
    multiplied first (reads < writes: the result must not be large on its way) or the result last, and W stays.
    """
    power = reads - writes
    if reads == writes == 0:
        return conv
    sizes = largest(conv.weight)
    sizes = sizes[sizes > 0] * 2.0**power
    lost = power < 0 and bool((sizes < SMALLEST_FOLDED).any())
    burst = power > 0 and bool((sizes > LARGEST_FOLDED).any())
    unit = reads if burst else writes  # in which the convolution's own result is stored
    weight = conv.weight if lost or burst or power == 0 else folded(conv.weight, torch.tensor(2.0**power))
    out = make_conv(conv, weight, None if conv.bias is None else conv.bias * 2.0**-unit)
    out.before, out.after = 2.0**power if lost else 1.0, 2.0**power if burst else 1.0
    out.reads, out.writes = reads, writes
    return out
