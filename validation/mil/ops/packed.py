"""Products with a large constant weight, laid out anew so that one row streams it: what a decode step consists of.

torch's own fp16 product of one row and a matrix is limited by arithmetic, not by memory. Its sum of weighted table rows
(`embedding_bag`, FBGEMM's kernel) raises fp16 to float32 in registers, adds there and rounds once, and is faster
(`benchmarks/speed.py decode`). A weight becomes such a table in blocks of 128 results; its
bias is one more row, weighted with 1. Many rows are multiplied block by block, raised while the block is in the cache.
"""

from __future__ import annotations

from functools import cache

import torch

from validation.mil.ops.measured import rounds_once
from validation.mil.ops.pieces import whole_eights
from validation.mil.registry import Packing, Tensor
from validation.mil.values import TensorType

BLOCK = 128  # results: 256 bytes of a table row, eight registers of sums
LEAST = 1 << 18  # weights; below, the call costs more than it saves
_HALF = torch.float16


class PackedLinear:
    """weight (D_out, D_in) and bias (D_out,) or None, fp16, as a table of D_out / 128 blocks.

    A block has D_in rows of 128 weights and, where there is a bias, a row of that.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.outputs, self.inputs = weight.shape
        self.blocks = self.outputs // BLOCK
        rows = self.inputs + (bias is not None)
        table = torch.empty(self.blocks, rows, BLOCK, dtype=_HALF)
        table[:, : self.inputs] = weight.view(self.blocks, BLOCK, self.inputs).transpose(1, 2)
        if bias is not None:
            table[:, -1] = bias.view(self.blocks, BLOCK)
        self.table = table.view(-1, BLOCK)
        self.one = None if bias is None else torch.ones(1, dtype=_HALF)
        self.indices, self.starts = _places(self.blocks, rows)


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """`linear` of x fp16 (..., D_in): every result a float32 sum, rounded once to fp16 (..., D_out)."""
    if x.shape[-1] != packed.inputs:
        raise ValueError(f"x has {x.shape[-1]} values in its last axis, the weight takes {packed.inputs}")
    one_row = x.numel() == packed.inputs
    result = _one_row(x.reshape(-1), packed) if one_row else _many_rows(x.reshape(-1, packed.inputs), packed)
    return result.view(*x.shape[:-1], packed.outputs)


def _one_row(row: Tensor, packed: PackedLinear) -> Tensor:
    if packed.one is not None:
        row = torch.cat((row, packed.one))
    factors = row.expand(packed.blocks, -1).reshape(-1)
    return torch.embedding_bag(packed.table, packed.indices, packed.starts, per_sample_weights=factors)[0]


def _many_rows(rows: Tensor, packed: PackedLinear) -> Tensor:
    raised = whole_eights(rows.float())
    result = rows.new_empty(rows.shape[0], packed.blocks, BLOCK)
    for at, half in enumerate(packed.table.view(packed.blocks, -1, BLOCK)):
        block = half.float()
        products = (raised @ block[: packed.inputs])[: rows.shape[0]]
        result[:, at] = products if packed.one is None else products.add_(block[-1])
    return result


@cache
def _places(blocks: int, rows: int) -> tuple[Tensor, Tensor]:
    """Indices of all table rows in order, and where each block's begin."""
    return torch.arange(blocks * rows, dtype=torch.int32), torch.arange(0, blocks * rows, rows, dtype=torch.int32)


@cache
def sums_in_float32() -> bool:
    """Whether `embedding_bag` of fp16 sums in float32 here and rounds once."""
    return rounds_once(lambda x, weight: linear(x, PackedLinear(weight)))


def is_large(outputs: int | None, inputs: int | None) -> bool:
    """Whether a weight of that shape is worth laying out, and can be."""
    return (outputs or 0) * (inputs or 0) >= LEAST and (outputs or 0) % BLOCK == 0


def is_here() -> bool:
    """Whether this machine has the kernel."""
    return "fbgemm" in torch.backends.quantized.supported_engines and sums_in_float32()


def _suits(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> bool:
    if bias is not None and bias.shape != weight.shape[:1]:
        return False  # the plain op names the fault
    return len(weight.shape) == 2 and is_large(*weight.shape)


LINEAR = Packing(_suits, lambda x: is_here(), PackedLinear, linear)
