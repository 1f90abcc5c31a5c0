"""GELU, sigmoid, softmax, pooling and layer norm as ONNX ops, also of tensors that are stored as x · 2^−e.

The forms with an exponent are those of `export.nonlinear` and `export.pooling`, op for op; the proofs stand there. Of a
norm no power is taken away: by ONNX's own definition LayerNormalization computes in float32 whatever comes in
(stash_type 1), so that no square leaves fp16; with an exponent its eps is scaled along.
All ops are standard, and all are among those that onnxruntime's CoreML provider documents.
It knows neither weights nor the order of ops in the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from export.nonlinear import EXP_CLAMP, GELU_CLAMP
from export.norms import ChannelNorm, SafeChannelNorm
from export.onnx.graph import Graph
from export.pooling import POOL_POWER

DTYPES: dict[int, np.dtype[Any]] = {TensorProto.FLOAT: np.dtype(np.float32), TensorProto.FLOAT16: np.dtype(np.float16)}
ROWS, COLUMNS = 2, 3  # axes of (1, C, h, w)


class Forms:
    """Adds ops on tensors of one dtype, FLOAT or FLOAT16, to a graph; each method returns the name of what it gives."""

    def __init__(self, graph: Graph, dtype: int) -> None:
        self.graph, self.dtype = graph, dtype

    def number(self, value: float) -> str:
        """Returns a constant of the graph's dtype."""
        return self.graph.constant(np.array(value, DTYPES[self.dtype]))

    def axes(self, *values: int) -> str:
        """Returns axes or a shape as ONNX wants them, int64."""
        return self.graph.constant(np.array(values, np.int64))

    def times(self, x: str, factor: float) -> str:
        """x · factor; nothing is added for 1."""
        return x if factor == 1 else self.graph.op("Mul", x, self.number(factor))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """x in another shape."""
        return self.graph.op("Reshape", x, self.axes(*shape))

    def transpose(self, x: str, *axes: int) -> str:
        """x with its axes in another order."""
        return self.graph.op("Transpose", x, perm=list(axes))

    def gelu(self, y: str, exponent: int) -> str:
        """GELU(y · 2^exponent) · 2^−exponent, exact (erf)."""
        if exponent == 0:
            return self.graph.op("Gelu", y, approximate="none")
        limit = self.number(GELU_CLAMP)
        clamped = self.graph.op("Clip", y, self.number(-GELU_CLAMP), limit)
        inside = self.graph.op("Gelu", self.times(clamped, 2.0**exponent), approximate="none")
        above = self.graph.op("Sub", self.graph.op("Max", y, limit), limit)
        return self.graph.op("Add", self.times(inside, 2.0**-exponent), above)

    def sigmoid(self, y: str, exponent: int) -> str:
        """σ(y · 2^exponent)."""
        if exponent:
            clamp = EXP_CLAMP * 2.0**-exponent
            y = self.times(self.graph.op("Clip", y, self.number(-clamp), self.number(clamp)), 2.0**exponent)
        return self.graph.op("Sigmoid", y)

    def softmax(self, y: str, exponent: int) -> str:
        """softmax(y · 2^exponent) over the last axis."""
        if exponent:
            below = self.graph.op("Sub", y, self.graph.op("ReduceMax", y, self.axes(-1), keepdims=1))
            bounded = self.graph.op("Max", below, self.number(-EXP_CLAMP * 2.0**-exponent))
            y = self.times(bounded, 2.0**exponent)
        return self.graph.op("Softmax", y, axis=-1)

    def pooled(self, x: str, safe: bool) -> str:
        """The mean of (1, C, h, w) over h and w, (1, C, 1, 1); `safe` gives it times 2^−POOL_POWER."""
        if not safe:
            return self.graph.op("ReduceMean", x, self.axes(ROWS, COLUMNS), keepdims=1)
        small = self.times(x, 2.0**-POOL_POWER)
        along = self.graph.op("ReduceMean", small, self.axes(COLUMNS), keepdims=1)
        return self.graph.op("ReduceMean", along, self.axes(ROWS), keepdims=1)

    def norm(self, x: str, norm: ChannelNorm | SafeChannelNorm, channels: int) -> str:
        """(x − mean) / √(variance + eps) over the last axis of (1, P, C), without gain and bias."""
        eps = norm.root_eps**2 if isinstance(norm, SafeChannelNorm) else norm.eps
        ones = self.graph.constant(np.ones(channels, DTYPES[self.dtype]), f"ones/{channels}")
        return self.graph.op("LayerNormalization", x, ones, axis=-1, epsilon=eps)
