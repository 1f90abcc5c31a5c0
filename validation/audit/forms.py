"""The forms in which a program computes what fp16 would lose: activations, norms and means of x stored as x · 2^−e.

Stated here a second time, from the words of `export.nonlinear`, `export.norms` and `export.pooling` and with their
numbers written out, so that what is wrong there is seen here:

| number | what for |
|---|---|
| 32 | GELU's clamp, in the units in which x is stored |
| 128 / 2^e | the clamp of sigmoid and softmax |
| 2^−12, and 2^−e in the decoder | the least of max|x| · 2^−K that a norm's input is divided by |
| K = ⌊log₂(32,768 / C) / 2⌋ | rows of C values are made as large as 2^K |
| 2^−14 | the least variance of a norm in plain ops |
| 2^−6 | what a map is multiplied by before its mean |
| 1e-12 | what coremltools adds under the root of every `rsqrt` |

It knows neither networks nor weights.
"""

from __future__ import annotations

import math

from torch import nn

from validation.audit.expected import Axes
from validation.audit.walk import Walk
from validation.program.contents import Value

CLAMP, STEEP = 32.0, 128.0
SUMS, LEAST_LARGEST, LEAST_VARIANCE = 32_768.0, 2.0**-12, 2.0**-14
POOLED = 6
ROOT_EPSILON = 1e-12


def gelu(walk: Walk, x: Value | None, exponent: int, module: nn.Module) -> Value | None:
    """GELU of a tensor stored as x · 2^−exponent, exact unless the reference's `module` is not."""
    mode = "EXACT" if getattr(module, "approximate", None) == "none" else "TANH_APPROXIMATION"
    if exponent == 0:
        return walk.op("gelu", x=x, mode=mode)
    inside = walk.op("clip", x=x, alpha=-CLAMP, beta=CLAMP)
    inside = walk.op("gelu", x=walk.op("mul", x=inside, y=2.0**exponent), mode=mode)
    inside = walk.op("mul", x=inside, y=2.0**-exponent)
    above = walk.op("sub", x=walk.op("maximum", x=x, y=CLAMP), y=CLAMP)
    return walk.op("add", x=inside, y=above)


def sigmoid(walk: Walk, x: Value | None, exponent: int) -> Value | None:
    """The logistic function of a tensor stored as x · 2^−exponent."""
    if exponent:
        clamp = STEEP * 2.0**-exponent
        x = walk.op("mul", x=walk.op("clip", x=x, alpha=-clamp, beta=clamp), y=2.0**exponent)
    return walk.op("sigmoid", x=x)


def softmax(walk: Walk, x: Value | None, exponent: int) -> Value | None:
    """Softmax over the last axis of scores stored as x · 2^−exponent."""
    if exponent:
        largest = walk.op("reduce_max", x=x, axes=Axes((-1,)), keep_dims=True)
        below = walk.op("maximum", x=walk.op("sub", x=x, y=largest), y=-STEEP * 2.0**-exponent)
        x = walk.op("mul", x=below, y=2.0**exponent)
    return walk.op("softmax", x=x, axis=Axes((-1,)))


def mean_of_maps(walk: Walk, x: Value | None, safe: bool) -> tuple[Value | None, int]:
    """The mean over h and w of (1, C, h, w), and by which power of two it is smaller than that."""
    if not safe:
        return walk.op("reduce_mean", x=x, axes=Axes((2, 3)), keep_dims=True), 0
    x = walk.op("mul", x=x, y=2.0**-POOLED)
    for axis in (3, 2):
        x = walk.op("reduce_mean", x=x, axes=Axes((axis,)), keep_dims=True)
    return x, POOLED


def shrunk(walk: Walk, x: Value | None, count: int, least: float) -> tuple[Value | None, Value | None]:
    """x · s and s, by channel: s brings `count` values to 2^K at most; `least` of max|x| · 2^−K."""
    power = math.floor(math.log2(SUMS / count) / 2)
    largest = walk.op("reduce_max", x=walk.op("abs", x=x), axes=Axes((1,)), keep_dims=True)
    bounded = walk.op("maximum", x=walk.op("mul", x=largest, y=2.0**-power), y=least)
    root = walk.op("rsqrt", x=bounded, epsilon=ROOT_EPSILON)
    scale = walk.op("mul", x=root, y=root)
    return walk.op("mul", x=x, y=scale), scale


def channel_norm(walk: Walk, x: Value | None, eps: float, channels: int, exponent: int, safe: bool) -> Value | None:
    """(x − mean) / √(variance + eps) over the channels of (1, C, h, w), x stored as x · 2^−exponent."""
    if not safe:
        return walk.op("layer_norm", x=x, axes=Axes((1,)), epsilon=eps * 4.0**-exponent)
    y, scale = shrunk(walk, x, channels, LEAST_LARGEST)
    centred = walk.op("sub", x=y, y=walk.op("reduce_mean", x=y, axes=Axes((1,)), keep_dims=True))
    root = walk.op("mul", x=scale, y=math.sqrt(eps) * 2.0**-exponent)
    variance = walk.op("reduce_mean", x=walk.op("mul", x=centred, y=centred), axes=Axes((1,)), keep_dims=True)
    variance = walk.op("add", x=variance, y=walk.op("mul", x=root, y=root))
    bounded = walk.op("maximum", x=variance, y=LEAST_VARIANCE)
    return walk.op("mul", x=centred, y=walk.op("rsqrt", x=bounded, epsilon=ROOT_EPSILON))
