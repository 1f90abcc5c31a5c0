"""How the numbers of a matrix lie in the data file, and the op that multiplies by them.

Floats lie as (K, N), which `MatMul` takes and a runtime can use in place, so a matrix is turned round in memory: the
largest that there is, the head, is all that is ever held. Codes lie as the checkpoint has them, row by row in blocks of
inputs, and pass through block by block:

    weight (N, K / 32, 32 · bits / 8) uint8, low nibble first; scales (N, K / 32) float32; zero_points (N, …) uint8

A value is scale · (code − zero point). int4 takes its codes, scales and offsets from the project's own search
(`export.compression.linear`), whose codes −8 … 7 become 0 … 15; int8 is symmetric, so its zero point is 128, the op's
default. Scales are fp16 numbers.
It knows no graph's structure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from export.compression.blocks import in_order, row_blocks
from export.compression.codes import compress
from export.compression.packing import pack
from export.compression.schemes import SCHEMES
from export.compression.stored import Codes
from export.onnx.forms import DTYPES
from export.onnx.graph import Dimension, Graph
from export.onnx.schemes import ACCURACY, BLOCK
from export.parameters import GraphWeight
from fastvlm_ref.checkpoint.tensors import own_memory


class Matrices:
    """Adds weights and products to a graph. `clamped` counts, by weight, the values that were too large for fp16."""

    def __init__(self, graph: Graph, floats: int) -> None:
        self.graph, self.floats = graph, floats
        self.clamped: dict[str, int] = {}

    def vector(self, weight: GraphWeight, floats: int | None = None) -> str:
        """Returns a bias or a gain (N,) as a weight, in the graph's floats unless others are asked for."""
        dtype = floats or self.floats
        return self.graph.weight(_name(weight), dtype, weight.shape, lambda: self.numbers(weight, dtype))

    def product(
        self, x: str, weight: GraphWeight, bias: GraphWeight | None, bits: int | None, rows: Dimension
    ) -> str:  # fmt: skip
        """Returns x · weightᵀ + bias, (1, rows, N) of x (1, rows, K); `bits` of a code, None for floats."""
        if bits is not None:
            return self._coded(x, weight, bias, bits, rows)
        count, width = weight.shape
        turned = self.graph.weight(_name(weight), self.floats, (width, count), lambda: self._turned(weight))
        y = self.graph.op("MatMul", x, turned)
        return y if bias is None else self.graph.op("Add", y, self.vector(bias))

    def numbers(self, weight: GraphWeight, dtype: int) -> Iterator[bytes]:
        """A weight's values in order; TensorError for NaN or infinity."""
        return weight.halves(self.clamped) if dtype == TensorProto.FLOAT16 else weight.singles()

    def _turned(self, weight: GraphWeight) -> Iterator[bytes]:
        """Its values (N, K) in the order (K, N)."""
        count, width = weight.shape
        dtype = DTYPES[self.floats]
        held = own_memory(-(-count * width * dtype.itemsize // 4)).numpy().view(dtype)[: count * width]
        whole, first = held.reshape(width, count), 0
        halves = self.floats == TensorProto.FLOAT16
        for rows in weight.blocks(self.clamped) if halves else row_blocks(weight.checked(), width):
            whole[:, first : first + len(rows)] = rows.numpy().T
            first += len(rows)
        step = max(1, (1 << 24) // (count * dtype.itemsize))
        yield from (whole[start : start + step].tobytes() for start in range(0, width, step))

    def _coded(
        self, x: str, weight: GraphWeight, bias: GraphWeight | None, bits: int, rows: Dimension
    ) -> str:  # fmt: skip
        count, width = weight.shape
        name, blocks = _name(weight), width // BLOCK
        made = CodedMatrix(weight, bits, self.clamped)
        shape = (count, blocks, BLOCK * bits // 8)
        inputs = [x, self.graph.weight(name, TensorProto.UINT8, shape, made.codes)]
        scales = f"{name}.scales"
        inputs.append(self.graph.weight(scales, TensorProto.FLOAT, (count, blocks), lambda: made.scales))
        if made.affine:
            packed = (count, -(-blocks * bits // 8))
            inputs.append(self.graph.weight(f"{name}.zero_points", TensorProto.UINT8, packed, lambda: made.zero_points))
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [self.vector(bias)]
        y = self.graph.microsoft(
            "MatMulNBits", *inputs, K=width, N=count, bits=bits, block_size=BLOCK, accuracy_level=ACCURACY
        )
        return self.graph.typed(y, self.floats, [1, rows, count])


class CodedMatrix:
    """A matrix (N, K) as codes; `codes` is to be read to its end before `scales` and `zero_points` are whole."""

    def __init__(self, weight: GraphWeight, bits: int, clamped: dict[str, int]) -> None:
        self.weight, self.bits, self.clamped = weight, bits, clamped
        self.affine = bits == 4
        self.scales: list[bytes] = []
        self.zero_points: list[bytes] = []

    def codes(self) -> Iterator[bytes]:
        """The codes, packed, block of rows by block of rows."""
        for made in in_order(self._compressed, self.weight.blocks(self.clamped)):
            self.scales.append(made.tables["scale"].numpy().astype("<f4").tobytes())
            if self.affine:
                self.zero_points.append(_packed_rows(_unsigned(made.tables["offset"], self.bits)))
            yield pack(_unsigned(made.codes, self.bits), self.bits)

    def _compressed(self, rows: Tensor) -> Codes:
        if self.affine:
            return compress(SCHEMES["int4"], rows, self.weight.importance)
        # A scale for each block of inputs is a scale for each row of a matrix whose rows are the blocks.
        return compress(SCHEMES["int8"], rows.reshape(-1, BLOCK))


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    """−2^(bits − 1) … as 0 …; exact."""
    return (codes.to(torch.int16) + (1 << bits - 1)).to(torch.uint8)


def _packed_rows(codes: Tensor) -> bytes:
    """Nibbles (n, blocks), each row in whole bytes."""
    table: NDArray[np.uint8] = codes.numpy()
    if table.shape[1] % 2:
        table = np.pad(table, ((0, 0), (0, 1)))
    return (table[:, ::2] | table[:, 1::2] << 4).astype(np.uint8).tobytes()


def _name(weight: GraphWeight) -> str:
    return weight.name.removeprefix("decoder.")
