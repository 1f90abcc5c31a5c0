"""Linear algebra (iOS15 and iOS17 linear) and attention (iOS18 transformers)."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F

from validation.mil.ops import batched, blocked, packed, pieces
from validation.mil.ops.measured import rounds_once
from validation.mil.registry import Kind, Tensor, Tensors, op

_HALF = torch.float16
# torch's fp16 kernel for matrices is 7x slower than raising to float32 here, the one for a vector 1.3x faster.
_HALF_ROWS = 1


@cache
def half_linear_rounds_once(device: str = "cpu") -> bool:
    """Whether this device's fp16 `linear` sums in float32 and rounds once.

    Where it does, weights stay fp16: half the memory, mapped, and up to 3x faster for one token.
    """
    return rounds_once(F.linear, device)


@op("linear", kind=Kind.NATIVE, fresh=True, blocked=blocked.linear, packing=packed.LINEAR)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """iOS15, iOS17 linear.linear: x (..., D_in) @ weight (D_out, D_in) transposed + bias (D_out,); gives x's type"""
    if any(operand is not None and operand.dtype is not x.dtype for operand in (weight, bias)):
        wide = None if bias is None else bias.float()  # iOS17 mixes types, integers among them
        return F.linear(x.float(), weight.float(), wide).to(x.dtype)
    rows = x.numel() // x.shape[-1]
    if x.dtype is not _HALF or (rows <= _HALF_ROWS and half_linear_rounds_once(x.device.type)):
        return F.linear(x, weight, bias)
    return pieces.linear_raising_weight(x, weight, bias)


def _matmul_of_half(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """`matmul` that gives fp16, of fp16 operands without raising or repeating more than it must."""
    left = x.mT if transpose_x and x.ndim > 1 else x
    right = y.mT if transpose_y and y.ndim > 1 else y
    if left.dtype is right.dtype is _HALF:
        return batched.matmul(left, right)
    return torch.matmul(left.float(), right.float()).to(_HALF)


@op("matmul", fresh=True, blocked=blocked.transposing_matmul, pieced=_matmul_of_half)
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """iOS15, iOS17 linear.matmul: rank-1 operands as numpy's matmul takes them"""
    if x.dtype is not y.dtype:  # iOS17 multiplies integers with floats
        x, y = (operand.to(torch.promote_types(x.dtype, y.dtype)) for operand in (x, y))
    left = x.mT if transpose_x and x.ndim > 1 else x
    right = y.mT if transpose_y and y.ndim > 1 else y
    return torch.matmul(left, right)


@op("scaled_dot_product_attention", fresh=True, blocked=blocked.attention)
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """iOS18 transformers.scaled_dot_product_attention: (B, ..., L, E), (B, ..., S, E), (B, ..., S, EV)"""
    scores = torch.matmul(query, key.mT) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)


@op("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    """iOS15 linear.einsum: any equation; axes of length 1 broadcast"""
    return torch.einsum(equation, *values)
