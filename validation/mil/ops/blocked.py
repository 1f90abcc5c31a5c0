"""Sums as a pessimistic device does them, for precision "fp16-accumulate".

Terms are summed in float32 over blocks of 32, each block's sum is rounded to fp16, and the blocks are added in fp16. 32
is the narrowest block that is reported to matter (54 dB per dot product at 4,864 terms, 74 dB when rounded once).
Terms of matrix products keep all their digits, as in every multiplier that adds; those of reductions and norms are
rounded to fp16 first, because there squaring and adding are two operations. So a norm of values beyond 255 overflows
here, as it may on a device. A mean is the sum, then divided: the order that overflows first.
Arguments come raised to float32; results leave in float32 holding fp16 values, those of norms not yet rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
_HALF = torch.float16


def half(values: Tensor) -> Tensor:
    """Values rounded to fp16, held in float32."""
    return values.to(_HALF).float()


def total(terms: Tensor, axes: Sequence[int], keep_dims: bool = False) -> Tensor:
    """The terms rounded to fp16 and added up over `axes` (none given: all) in blocks of 32, along the axes in order."""
    over = sorted(axis % terms.ndim for axis in axes) or list(range(terms.ndim))
    kept = [axis for axis in range(terms.ndim) if axis not in over]
    rows = half(terms).permute([*kept, *over]).flatten(len(kept))
    blocks = F.pad(rows, (0, -rows.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1).to(_HALF)
    result: Tensor = blocks.new_zeros(blocks.shape[:-1])
    for at in range(blocks.shape[-1]):
        result = result + blocks[..., at]
    shape = [1 if axis in over else length for axis, length in enumerate(terms.shape)]
    return result.float().reshape(shape) if keep_dims else result.float()


def mean(terms: Tensor, axes: Sequence[int], keep_dims: bool = False) -> Tensor:
    """Their `total`, divided by their number and rounded to fp16."""
    over = axes or range(terms.ndim)
    return half(total(terms, axes, keep_dims) / math.prod(terms.shape[axis] for axis in over))


def standardised(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over `axes`, each step rounded to fp16 as if it were an op of its own."""
    centred = half(x - mean(x, axes, keep_dims=True))
    variance = mean(centred * centred, axes, keep_dims=True)
    return half(centred * half(torch.rsqrt(half(variance + epsilon))))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The blocked `softmax`: powers of at most 1 rounded to fp16, their sum in blocks."""
    powers = half(torch.exp(x - x.amax(axis, keepdim=True)))
    return powers / total(powers, [axis], keep_dims=True)


def _added(total: Tensor | None, block: Tensor) -> Tensor:
    """total + block, both rounded to fp16, the sum rounded to fp16."""
    part = block.to(_HALF)
    return part if total is None else total + part


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """x (..., M, K) @ y (..., K, N) in blocks of 32 of K; rank 1 as torch.matmul takes it."""
    total = None
    for start in range(0, x.shape[-1], BLOCK):
        rows = y[start : start + BLOCK] if y.ndim == 1 else y[..., start : start + BLOCK, :]
        total = _added(total, torch.matmul(x[..., start : start + BLOCK], rows))
    return torch.matmul(x, y) if total is None else total.float()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The blocked `linear`: the bias is added last, in fp16."""
    total = matmul(x.float(), weight.float().mT).to(_HALF)
    return total if bias is None else total + bias.to(_HALF)


def transposing_matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """The blocked `matmul`."""
    return matmul(x.mT if transpose_x and x.ndim > 1 else x, y.mT if transpose_y and y.ndim > 1 else y)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """The blocked `scaled_dot_product_attention`: both products in blocks, and the softmax between them."""
    scores = matmul(query, key.mT) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return matmul(half(softmax(scores)), value)


def weight_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weight (C_out, C_in, kernel...) cut into blocks of 32 of its flattened (C_in, kernel) terms.

    Gives (channels, weight of those channels with all terms outside the block set to zero): convolving those channels
    with it sums exactly the block's products.
    """
    taps = math.prod(weight.shape[2:])
    terms = torch.arange(weight.shape[1] * taps).reshape(weight.shape[1:])
    for start in range(0, weight.shape[1] * taps, BLOCK):
        channels = slice(start // taps, min(-(-(start + BLOCK) // taps), weight.shape[1]))
        inside = (terms[channels] >= start) & (terms[channels] < start + BLOCK)
        yield channels, weight[:, channels] * inside


def grouped_channels(x: Tensor, channels: slice, groups: int) -> Tensor:
    """Those channels of each group of x (B, C, ...)."""
    picked: Tensor = x.unflatten(1, (groups, -1))[:, :, channels].flatten(1, 2)
    return picked
