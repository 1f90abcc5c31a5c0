"""Sums of products as a pessimistic device does them, for precision "fp16-accumulate".

Products are summed in float32 over blocks of 32, each block's sum is rounded to fp16, and the blocks are added in
fp16. 32 is the narrowest block that is reported to matter (54 dB per dot product at 4,864 terms, 74 dB when rounded
once). Arguments come raised to float32; results leave in float32 holding fp16 values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 32
_HALF = torch.float16


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
    """The blocked `scaled_dot_product_attention`: both products in blocks, the softmax between them in float32."""
    scores = matmul(query, key.mT) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return matmul(torch.softmax(scores, dim=-1).to(_HALF).float(), value)


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
