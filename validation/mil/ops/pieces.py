"""fp16 products in pieces: raised to float32, computed and rounded while they are in the cache.

Raising a large tensor whole writes it to memory and reads it back; that costs as much as a small product itself. The
numbers are those of the whole: every result is one float32 sum, rounded once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from validation.mil.registry import Tensor

ROWS = 1024  # of a large product at a time: enough for the matrix kernel, and its float32 rows stay in the cache
COLUMNS = 512  # of a weight that is raised for every call
_HALF = torch.float16


def whole_eights(rows: Tensor) -> Tensor:
    """rows (..., R, K) with zeros below until R is a multiple of eight.

    torch's float32 product of 5, 7 or 9 rows gives other last bits on two threads than on one (MKL's, 2024).
    """
    return F.pad(rows, (0, 0, 0, -rows.shape[-2] % 8))


def rows_times_weight(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns rows fp16 (R, D_in) times weight float32 (D_out, D_in) transposed, plus bias float32 (D_out,): fp16."""
    result = rows.new_empty(rows.shape[0], weight.shape[0])
    for start in range(0, rows.shape[0], ROWS):
        piece = rows[start : start + ROWS].float()
        result[start : start + ROWS] = F.linear(piece, weight, bias)
    return result


def linear_raising_weight(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x fp16 (..., D_in) times weight fp16 (D_out, D_in) transposed, plus bias (D_out,): fp16."""
    raised = x.float()
    result = x.new_empty(*x.shape[:-1], weight.shape[0])
    for start in range(0, weight.shape[0], COLUMNS):
        part = slice(start, start + COLUMNS)
        own = None if bias is None else bias[part].float()
        result[..., part] = F.linear(raised, weight[part].float(), own)
    return result


def batched_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Returns left (..., M, K) times right (..., K, N) of equal batch shapes, one matrix at a time: fp16."""
    batch = left.shape[:-2]
    lefts, rights = left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:])
    result = torch.empty(lefts.shape[0], left.shape[-2], right.shape[-1], dtype=_HALF, device=left.device)
    for at in range(lefts.shape[0]):
        result[at] = torch.mm(lefts[at].float(), rights[at].float())
    return result.reshape(*batch, *result.shape[-2:])
