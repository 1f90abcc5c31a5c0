"""`matmul` of fp16 whose operands have batch axes: attention, where the queries of a group share keys and values.

torch repeats an operand whose batch axis broadcasts, and raising a cache to float32 costs more than its product with a
few queries. Here the other operand's broadcast axes become rows, so nothing is repeated, and then:
- few rows times a table in memory order (queries times keys of shape (D, C)) are sums of weighted table rows, which
  FBGEMM's `embedding_bag` adds up in float32 registers from fp16, see `packed`;
- few rows times anything else (weights times values) are multiplied whole, or in parts where that is much memory;
- many rows are multiplied matrix by matrix, see `pieces`.
Each result is one float32 sum, rounded once.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch

from validation.mil.ops import packed, pieces
from validation.mil.registry import Tensor

FEW = 32  # rows; of more, raising the matrix costs less than reading it once for each
TABLE = 1 << 15  # elements of a matrix that is worth a call of `embedding_bag`
LARGE = 1 << 18  # elements of an operand that is worth taking matrix by matrix
WHOLE = 1 << 21  # elements that are raised at once for few rows: 8 MB of float32
_HALF = torch.float16


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Returns left (..., M, K) times right (..., K, N), both fp16, batch axes broadcasting as numpy's do: fp16."""
    if min(left.ndim, right.ndim) > 2 and left.numel() and right.numel():
        if left.shape[:-2] == right.shape[:-2]:
            return _equal_batches(left, right)
        if (rows := _folded(left, right)) is not None:
            return rows
        if (rows := _folded(right.mT, left.mT)) is not None:
            return rows.mT
    return torch.matmul(left.float(), right.float()).to(_HALF)


def _folded(many: Tensor, one: Tensor) -> Tensor | None:
    """many (*lead, *rest, M, K) times one (*lead, 1..., K, N): (*lead, *rest, M, N); None where `one` is not so."""
    equal = [first == second for first, second in zip(many.shape[:-2], one.shape[:-2], strict=False)]
    lead = equal.index(False) if False in equal else len(equal)
    if many.ndim != one.ndim or prod(one.shape[lead:-2]) != 1:
        return None
    rows, matrices = many.flatten(lead, -2), one.flatten(lead, -2)
    return _equal_batches(rows, matrices).reshape(*many.shape[:-1], one.shape[-1])


def _equal_batches(left: Tensor, right: Tensor) -> Tensor:
    """left (*batch, M, K) times right (*batch, K, N)."""
    batch, rows, columns = left.shape[:-2], left.shape[-2], right.shape[-1]
    lefts, rights = left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:])
    if columns <= FEW < rows:
        return _few_rows(rights.mT, lefts.mT).mT.reshape(*batch, rows, columns)
    if rows <= FEW:
        return _few_rows(lefts, rights).reshape(*batch, rows, columns)
    if max(left.numel(), right.numel()) < LARGE:
        return torch.matmul(left.float(), right.float()).to(_HALF)
    return pieces.batched_matmul(left, right)


def _few_rows(rows: Tensor, matrices: Tensor) -> Tensor:
    """rows (B, R, K) times matrices (B, K, N)."""
    if matrices.numel() >= TABLE and matrices.is_contiguous() and rows.device.type == "cpu" and packed.is_here():
        return _weighted_table_rows(rows, matrices)
    raised = pieces.whole_eights(rows.float()) if rows.shape[1] > 1 else rows.float()
    step = max(WHOLE // (matrices.shape[1] * matrices.shape[2]), 1)
    parts = [
        torch.bmm(raised[at : at + step], matrices[at : at + step].float()).to(_HALF)
        for at in range(0, rows.shape[0], step)
    ]
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[:, : rows.shape[1]]


def _weighted_table_rows(rows: Tensor, matrices: Tensor) -> Tensor:
    batch, count, terms = rows.shape
    indices, starts = _places(batch, count, terms)
    table = matrices.view(batch * terms, -1)
    sums: Tensor = torch.embedding_bag(table, indices, starts, per_sample_weights=rows.reshape(-1))[0]
    return sums.view(batch, count, -1)


@lru_cache(maxsize=64)
def _places(batch: int, count: int, terms: int) -> tuple[Tensor, Tensor]:
    """Indices of the table rows that each result adds up, in order, and where each result's begin."""
    indices = torch.arange(batch * terms, dtype=torch.int32).view(batch, 1, terms).expand(-1, count, -1).reshape(-1)
    return indices, torch.arange(0, batch * count * terms, terms, dtype=torch.int32)
