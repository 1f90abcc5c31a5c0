"""The decoder as one graph for prefill and decode: rows of embeddings in, logits of the last row out.

| name | dtype | shape | |
|---|---|---|---|
| `inputsEmbeds` | floats | [1, S, H] | S rows, any number |
| `seqlensK` | int32 | [1] | the last position that is filled after this call: past + S − 1 |
| `totalSequenceLength` | int32 | [] | past + S |
| `pastKeys.i`, `pastValues.i` | floats | [1, kv_heads, C, D] | the cache of layer i |
| `logits` | float32 | [1, 1, V] | |
| `presentKeys.i`, `presentValues.i` | floats | [1, kv_heads, C, D] | to be bound to the buffers of the past |

floats: float32, in fp16 float16. Notable choices:
- `GroupQueryAttention` rotates queries and keys by the tables that lie in the graph (angles in float32, as the
  reference computes them), masks, and writes only the S new rows of the cache where past and present are one buffer;
- a layer's two sums are part of the norms behind them (`SkipSimplifiedLayerNormalization`); the first norm has no sum
  and is written in standard ops, because no standard opset up to 21 has one;
- behind the attention of the last layer only the last row goes on;
- q, k and v, gate and up are products of their own, named after the checkpoint's tensors: measured, one product of all
  their rows is not faster.
In fp16 the residual stream and its norms are float32, so that what a layer adds to large numbers is not rounded away.
A scan's exponents keep the rest in range (`export.onnx.folded`): the residual stream is then x · 2^−residual and eps of
its norms eps · 4^−residual, and the attention's scale takes 2^scores.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.onnx.attention import ROWS, AttentionOps
from export.onnx.folded import DecoderNumbers
from export.onnx.graph import MICROSOFT, Dimension, Graph
from export.onnx.schemes import Variant
from export.onnx.weights import Matrices
from export.protection import PROTECTED, Protection
from fastvlm_ref.model.decoder import Decoder

EMBEDS, LAST, TOTAL, LOGITS = "inputsEmbeds", "seqlensK", "totalSequenceLength", "logits"


class DecoderWriter:
    """Writes a decoder into a graph, once; `context` C positions. The decoder's weights may stream."""

    def __init__(
        self, graph: Graph, decoder: Decoder, variant: Variant, context: int, protection: Protection = PROTECTED
    ) -> None:  # fmt: skip
        self.graph, self.text, self.variant, self.context = graph, decoder.config, variant, context
        self.numbers = DecoderNumbers(decoder, variant.halves, context, protection)
        self.residual = self.numbers.protection.residual
        self.matrices = Matrices(graph, variant.floats)
        self.rows: Dimension = ROWS

    def write(self) -> dict[str, int]:
        """Adds everything; returns how many values of each weight were too large for fp16. TensorError for NaN."""
        graph, text = self.graph, self.text
        embeds = graph.input(EMBEDS, self.variant.floats, [1, ROWS, text.hidden_size])
        last, total = graph.input(LAST, TensorProto.INT32, [1]), graph.input(TOTAL, TensorProto.INT32, [])
        self._attend = AttentionOps(graph, text, self.context, self.variant.floats, embeds, last, total)
        x, update = self._enter(embeds), ""
        for index in range(text.layers):
            with graph.scope(f"layers.{index}"):
                x, update = self._layer(index, x, update)
        with graph.scope("norm"):
            normed, _ = self._norm("norm.weight", x, update)
        with graph.scope("lm_head"):
            logits = self._product("lm_head", normed, self.variant.head_bits)
            graph.output(self._wide(logits), LOGITS, TensorProto.FLOAT, [1, 1, text.vocab_size])
        return self.matrices.clamped

    def _enter(self, embeds: str) -> str:
        x = self._wide(embeds)
        power = 2.0**-self.residual
        return x if power == 1 else self.graph.op("Mul", x, self.graph.constant(np.array(power, np.float32)))

    def _layer(self, index: int, x: str, update: str) -> tuple[str, str]:
        """Returns the residual stream and what is still to be added to it, behind layer `index`."""
        prefix = f"layers.{index}"
        normed, x = self._norm(f"{prefix}.input_layernorm.weight", x, update)
        mixed = self._attention(index, normed)
        if index == self.text.layers - 1:
            x, mixed = self._last_row(x), self._last_row(mixed)
            self.rows = 1
        update = self._wide(self._product(f"{prefix}.self_attn.o_proj", mixed, self.variant.bits))
        normed, x = self._norm(f"{prefix}.post_attention_layernorm.weight", x, update)
        return x, self._wide(self._mlp(f"{prefix}.mlp", normed))

    def _last_row(self, x: str) -> str:
        return self.graph.op("Gather", x, self.graph.constant(np.array([-1], np.int64)), axis=1)

    def _attention(self, index: int, x: str) -> str:
        """Returns the mixed values (1, S, heads · D) of a normed x; writes the cache of the layer."""
        q, k, v = (self._product(f"layers.{index}.self_attn.{name}_proj", x, self.variant.bits) for name in "qkv")
        shift, exponent = self.numbers.shift(index), self.numbers.protection.scores
        with self.graph.scope("self_attn"):
            if shift is not None:
                q, k = self._attend.rotated(q, k, index, shift)
            scale = 2.0**exponent * self.text.head_dim**-0.5 if exponent else None
            return self._attend.mixed(index, q, k, v, rotate=shift is None, scale=scale)

    def _mlp(self, prefix: str, x: str) -> str:
        bits, op = self.variant.bits, self.graph.op
        with self.graph.scope("mlp"):
            gate, up = (self._product(f"{prefix}.{name}_proj", x, bits) for name in ("gate", "up"))
            activated = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
            return self._product(f"{prefix}.down_proj", activated, bits)

    def _norm(self, name: str, x: str, update: str) -> tuple[str, str]:
        """Returns the norm of x + update in the graph's floats, and x + update; no update is ""."""
        gain = self.matrices.vector(self.numbers.weight(name), TensorProto.FLOAT)
        eps = self.text.rms_norm_eps * 4.0**-self.residual
        with self.graph.scope(name.removesuffix(".weight").rpartition(".")[2]):
            if not update:
                return self._narrow(self._plain_norm(x, gain, eps)), x
            scope = name.removesuffix(".weight")
            normed, _, _, total = self.graph.ops(
                "SkipSimplifiedLayerNormalization", x, update, gain, count=4, domain=MICROSOFT,
                into=[f"{scope}/normed", "", "", f"{scope}/sum"], epsilon=eps,
            )  # fmt: skip
            for value in (normed, total):
                self.graph.typed(value, TensorProto.FLOAT, [1, self.rows, self.text.hidden_size])
            return self._narrow(normed), total

    def _plain_norm(self, x: str, gain: str, eps: float) -> str:
        """x / √(mean(x²) + eps) · gain in standard ops."""
        op, constant = self.graph.op, self.graph.constant
        mean = op("ReduceMean", op("Mul", x, x), constant(np.array([-1], np.int64)), keepdims=1)
        root = op("Sqrt", op("Add", mean, constant(np.array(eps, np.float32))))
        return op("Mul", op("Div", x, root), gain)

    def _product(self, module: str, x: str, bits: int | None) -> str:
        weight, bias = self.numbers.weight(f"{module}.weight"), self.numbers.bias(module)
        return self.matrices.product(x, weight, bias, bits, self.rows)

    def _wide(self, x: str) -> str:
        """x in float32."""
        return self.graph.op("Cast", x, to=TensorProto.FLOAT) if self.variant.halves else x

    def _narrow(self, x: str) -> str:
        """float32 x in the graph's floats."""
        return self.graph.op("Cast", x, to=self.variant.floats) if self.variant.halves else x
