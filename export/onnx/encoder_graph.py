"""The vision encoder's graph as ONNX ops: `export.encoder.EncoderGraph`, module by module, with its weights.

Notable choices:
- the folded weights are those of the Core ML graph: batch norm, layer scales, norms' gains, exact powers of two;
- feature maps are (1, C, h, w) and convolutions plain `Conv`, which onnxruntime on a CPU turns into its blocked layout
  with bias and residual sum fused; attention and projector work on rows (1, P, C), P = h · w, as `MatMul`;
- a layer scale that fp16 cannot hold folded stays a `Mul` in fp16 and is folded in float32, which can;
- weights keep the names of the graph's parameters, so that two sizes share them.
It knows neither files nor the form of int8 (`export.onnx.encoder_int8`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
from onnx import TensorProto
from torch import Tensor, nn

from export.encoder import (
    AttentionBlockGraph,
    AttentionGraph,
    ConvGraph,
    EncoderGraph,
    FFNGraph,
    RepMixerGraph,
    Scaled,
    SEGraph,
)
from export.folding import folded, make_conv
from export.nonlinear import Gelu
from export.norms import ChannelNorm, SafeChannelNorm
from export.onnx.forms import DTYPES, Forms
from export.onnx.graph import Graph
from export.weights import saturate

PART = "vision_encoder"  # what goes before the names of its weights
PIECE = 1 << 20  # values of a weight that are converted at a time


class EncoderWriter(Forms):
    """Writes one encoder into a graph. side: of the image N; the side of the current map follows every stride.

    clamped: gets the number of values that fp16 could not hold, by weight. Raises TensorError for NaN and infinity.
    """

    def __init__(self, graph: Graph, encoder: EncoderGraph, dtype: int, side: int, clamped: dict[str, int]) -> None:
        super().__init__(graph, dtype)
        self.encoder, self.side, self.clamped = encoder, side, clamped
        self._paths = {module: name for name, module in encoder.named_modules()}
        self._at = ""

    def tokens(self, x: str) -> str:
        """Pixels (1, 3, N, N) in [0, 1] -> image tokens (1, T, H)."""
        for part in (self.encoder.patch_embed, *self.encoder.network, self.encoder.conv_exp):
            x = self.part(x, part)  # (1, 3072, N/64, N/64) behind the last
        x = self.rows(x)
        x = self.linear(x, self.encoder.projector_0)
        with self.at(self.encoder.projector_0):
            x = self.gelu(x, self.encoder.exponent)
        return self.linear(x, self.encoder.projector_2)

    def part(self, x: str, module: nn.Module) -> str:
        """What a module of the graph makes of (1, C, h, w)."""
        with self.at(module):
            match module:
                case ConvGraph():
                    return self.conv_gelu(x, module)
                case RepMixerGraph():
                    x = self.conv(x, module.token_mixer)
                    return self.graph.op("Add", x, self.ffn(x, module.convffn))
                case AttentionBlockGraph():
                    x = self.graph.op("Add", x, self.attention(x, module.token_mixer))
                    return self.graph.op("Add", x, self.attended_ffn(x, module.convffn))
                case Gelu():
                    return self.gelu(x, module.exponent)
                case nn.Conv2d():
                    return self.conv(x, module)
                case nn.Sequential():
                    for child in module:
                        x = self.part(x, child)
                    return x
        raise TypeError(f"no ONNX form for {type(module).__name__}")

    @contextmanager
    def at(self, module: nn.Module) -> Iterator[None]:
        """Names the ops that are added inside after a module's path."""
        outer, self._at = self._at, self._paths[module]
        with self.graph.scope(self._at.removeprefix(f"{outer}.")):
            yield
        self._at = outer

    def conv_gelu(self, x: str, block: ConvGraph) -> str:
        """Convolution, perhaps squeeze-excite, GELU."""
        x = self.conv(x, block.conv)
        if block.se is not None:
            with self.at(block.se):
                x = self.squeeze_excite(x, block.se)
        return self.gelu(x, block.site.exponent)

    def squeeze_excite(self, x: str, block: SEGraph) -> str:
        """x · σ(expand(relu(reduce(mean(x)))))."""
        squeezed = self.graph.op("Relu", self.conv(self.pooled(x, block.safe), block.reduce))
        return self.graph.op("Mul", x, self.sigmoid(self.conv(squeezed, block.expand), block.exponent))

    def ffn(self, x: str, block: FFNGraph) -> str:
        """layer_scale · fc2(gelu(fc1(depthwise 7×7(x)))), of a RepMixer block."""
        with self.at(block):
            wide = self.gelu(self.conv(self.conv(x, block.conv), block.fc1), block.exponent)
            return self.scaled(wide, block.fc2, self.conv)

    def attended_ffn(self, x: str, block: FFNGraph) -> str:
        """The same, of an attention block."""
        return self.ffn(x, block)

    def attention(self, x: str, block: AttentionGraph) -> str:
        """layer_scale_1 · proj(attention(norm(x))) of (1, C, h, w), as rows between its first and its last op."""
        channels = block.heads * block.head_dim
        with self.at(block):
            x = self.norm(self.rows(x), cast(ChannelNorm | SafeChannelNorm, block.norm), channels)
            query, key = self.heads(x, block, block.q, 0, 2, 1, 3), self.heads(x, block, block.k, 0, 2, 3, 1)
            weights = self.softmax(self.graph.op("MatMul", query, key), block.scores)  # (1, heads, P, P)
            mixed = self.graph.op("MatMul", weights, self.heads(x, block, block.v, 0, 2, 1, 3))  # (1, heads, P, D)
            mixed = self.reshape(self.transpose(mixed, 0, 2, 1, 3), (1, self.side**2, channels))
            return self.maps(self.scaled(mixed, block.proj, self.linear), channels)

    def heads(self, x: str, block: AttentionGraph, projection: nn.Conv2d, *order: int) -> str:
        """Rows (1, P, C) projected, as (1, P, heads, D) with its axes in `order`."""
        shape = (1, self.side**2, block.heads, block.head_dim)
        return self.transpose(self.reshape(self.linear(x, projection), shape), *order)

    def rows(self, x: str) -> str:
        """(1, C, h, w) -> (1, P, C), row by row."""
        return self.reshape(self.transpose(x, 0, 2, 3, 1), (1, self.side**2, -1))

    def maps(self, x: str, channels: int) -> str:
        """(1, P, C) -> (1, C, h, w)."""
        return self.transpose(self.reshape(x, (1, self.side, self.side, channels)), 0, 3, 1, 2)

    def scaled(self, x: str, block: Scaled, write: Callable[[str, nn.Conv2d], str]) -> str:
        """What `write` makes of a convolution and the layer scale behind it."""
        with self.at(block):
            if block.scale is None:
                return write(x, block.conv)
            if self.dtype == TensorProto.FLOAT:
                return write(x, self.derived(block.conv, with_scale(block)))
            in_maps = write == self.conv
            scale = self.tensor(f"{self._at}.scale", block.scale if in_maps else block.scale.flatten())
            return self.graph.op("Mul", write(x, block.conv), scale)

    def derived(self, conv: nn.Conv2d, changed: nn.Conv2d) -> nn.Conv2d:
        """Gives a convolution that was made of another one its name."""
        self._paths[changed] = self._paths[conv]
        return changed

    def conv(self, x: str, conv: nn.Conv2d) -> str:
        """A convolution of (1, C, h, w), with the powers of two that its weights do not hold."""
        with self.at(conv):
            weights = [self.tensor(f"{self._at}.weight", conv.weight), *self.bias(conv)]
            out = self.graph.op(
                "Conv", self.times(x, getattr(conv, "before", 1.0)), *weights, kernel_shape=list(conv.kernel_size),
                strides=list(conv.stride), pads=2 * list(cast(tuple[int, int], conv.padding)), group=conv.groups,
            )  # fmt: skip
            self.side //= conv.stride[0]
            return self.times(out, getattr(conv, "after", 1.0))

    def linear(self, x: str, conv: nn.Conv2d) -> str:
        """A 1×1 convolution of rows (1, P, C), with the powers of two that its weights do not hold."""
        with self.at(conv):
            weight = self.tensor(f"{self._at}.weight", conv.weight.flatten(1).t())
            out = self.graph.op("MatMul", self.times(x, getattr(conv, "before", 1.0)), weight)
            for bias in self.bias(conv):
                out = self.graph.op("Add", out, bias)
            return self.times(out, getattr(conv, "after", 1.0))

    def bias(self, conv: nn.Conv2d) -> list[str]:
        """The bias where there is one."""
        return [] if conv.bias is None else [self.tensor(f"{self._paths[conv]}.bias", conv.bias)]

    def tensor(self, name: str, values: Tensor) -> str:
        """A weight in the graph's dtype."""

        def pieces() -> Iterator[bytes]:
            for piece in self._held(name, values).contiguous().view(-1).split(PIECE):
                yield np.ascontiguousarray(piece.numpy().astype(DTYPES[self.dtype], copy=False)).tobytes()

        return self.graph.weight(f"{PART}.{name}", self.dtype, values.shape, pieces)

    def _held(self, name: str, values: Tensor) -> Tensor:
        """The values, within fp16 where the graph is; those that were too large are counted."""
        within, count = saturate(f"{PART}.{name}", values)
        if self.dtype == TensorProto.FLOAT:
            return values.detach()
        if count:
            self.clamped[f"{PART}.{name}"] = count
        return within


def with_scale(block: Scaled) -> nn.Conv2d:
    """Returns a convolution with its layer scale folded in, which float32 holds whatever its size."""
    assert block.scale is not None
    assert block.conv.bias is not None
    gain = block.scale.double().reshape(-1)
    return make_conv(block.conv, folded(block.conv.weight, gain[:, None, None, None]), block.conv.bias.double() * gain)
