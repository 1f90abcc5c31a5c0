"""The encoder in int8: weights of eight bits, activations made eight bits while it runs.

Where 487 GFLOP of a picture of 1024 pixels are, and what was measured of each form on a CPU with VNNI (GFLOP/s of one
core, of which float32 reaches 200): the two 1×1 convolutions of the RepMixer blocks have 367 of them, over 4,096 to
65,536 positions, and `DynamicQuantizeMatMul` does 540 to 710; the attention blocks and the projector have 89, over at
most 1,024 positions, and `MatMulNBits` does 250 to 310. Everything else stays float32.

- `DynamicQuantizeMatMul`: activations with one scale and zero point for the whole map, weights with a scale for each
  output channel. Channels of a map that differ much in size would share that scale, so they are brought together
  beforehand, by exact powers of two between the 7×7 convolution and fc1 (`export.onnx.smoothing`).
- `MatMulNBits`: activations with a scale for each 32 of a row, weights likewise. Large values of a few channels, which
  the last stage of real checkpoints is known for, cost those 32 alone.

Both are onnxruntime's own ops (`com.microsoft`). On x86 without VNNI the first adds pairs of products in 16 bits, which
may saturate; the session option `session.x64quantprecision` turns that off there.
It knows neither files nor how the powers were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from export.compression.codes import compress
from export.compression.schemes import SCHEMES
from export.encoder import EncoderGraph, FFNGraph
from export.folding import make_conv
from export.onnx.encoder_graph import PART, EncoderWriter
from export.onnx.graph import Graph

BLOCK = 32  # inputs that share a scale in MatMulNBits
ZERO, LEVELS = 128, 127  # MatMulNBits stores a weight as scale · (code − 128), code from 1 to 255
EIGHT_BITS = 4  # MatMulNBits' accuracy_level for activations of eight bits


class Int8EncoderWriter(EncoderWriter):
    """Writes an encoder without exponents; `powers` are those of `export.onnx.smoothing`, by module path."""

    def __init__(self, graph: Graph, encoder: EncoderGraph, side: int, powers: Mapping[str, Tensor]) -> None:
        super().__init__(graph, encoder, TensorProto.FLOAT, side, {})
        self.powers = powers

    def ffn(self, x: str, block: FFNGraph) -> str:
        return self._in_rows(x, block, self.dynamic)

    def attended_ffn(self, x: str, block: FFNGraph) -> str:
        return self._in_rows(x, block, self.linear)

    def _in_rows(self, x: str, block: FFNGraph, write: Callable[[str, nn.Conv2d], str]) -> str:
        """The FFN with its two 1×1 convolutions on rows, as `write` writes them."""
        with self.at(block):
            power = self.powers[self._at]
            mixed = self.rows(self.conv(x, self.derived(block.conv, writes_less(block.conv, power))))
            wide = write(mixed, self.derived(block.fc1, reads_less(block.fc1, power)))
            return self.maps(self.scaled(self.gelu(wide, 0), block.fc2, write), len(power))

    def dynamic(self, x: str, conv: nn.Conv2d) -> str:
        """A 1×1 convolution of rows (1, P, C) in eight bits, activations with one scale for all rows."""
        with self.at(conv):
            outputs, inputs = conv.weight.shape[:2]
            coded = cache(lambda: compress(SCHEMES["int8"], conv.weight.flatten(1)))
            codes = self.stored("codes", TensorProto.INT8, (inputs, outputs), lambda: coded().codes.t())
            scale = self.stored("scale", TensorProto.FLOAT, (outputs,), lambda: coded().tables["scale"].float())
            return self.graph.microsoft("DynamicQuantizeMatMul", x, codes, scale, "", *self.bias(conv))

    def linear(self, x: str, conv: nn.Conv2d) -> str:
        """A 1×1 convolution of rows (1, P, C) in eight bits, activations with a scale for each 32 of a row."""
        with self.at(conv):
            outputs, inputs = conv.weight.shape[:2]
            coded, count = cache(lambda: blocks(conv.weight.flatten(1))), -(-inputs // BLOCK)
            codes = self.stored("codes", TensorProto.UINT8, (outputs, count, BLOCK), lambda: coded()[0])
            scales = self.stored("scale", TensorProto.FLOAT, (outputs, count), lambda: coded()[1])
            return self.graph.microsoft(
                "MatMulNBits", x, codes, scales, "", "", *self.bias(conv),
                K=inputs, N=outputs, bits=8, block_size=BLOCK, accuracy_level=EIGHT_BITS,
            )  # fmt: skip

    def stored(self, kind: str, dtype: int, shape: tuple[int, ...], values: Callable[[], Tensor]) -> str:
        """A part of the weight at the current path; `values` are made where no earlier model has them."""

        def pieces() -> Iterable[bytes]:
            yield np.ascontiguousarray(values().numpy()).tobytes()

        return self.graph.weight(f"{PART}.{self._at}.{kind}", dtype, shape, pieces)


def blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns codes uint8 (N, K / 32, 32) and scales float32 (N, K / 32) of a weight (N, K); K is padded with zeros."""
    cut = F.pad(weight, (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = (cut.abs().amax(2) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (torch.round(cut / scales[:, :, None]) + ZERO).to(torch.uint8), scales


def writes_less(conv: nn.Conv2d, power: Tensor) -> nn.Conv2d:
    """A depthwise convolution whose channel c gives its result times 2^−power[c]; exact."""
    assert conv.bias is not None
    factor = torch.exp2(-power)
    return make_conv(conv, conv.weight * factor[:, None, None, None], conv.bias * factor)


def reads_less(conv: nn.Conv2d, power: Tensor) -> nn.Conv2d:
    """A 1×1 convolution that takes its channel c times 2^−power[c]; exact."""
    return make_conv(conv, conv.weight * torch.exp2(power)[None, :, None, None], conv.bias)
