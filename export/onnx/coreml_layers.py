"""The decoder for onnxruntime's CoreML provider: standard ops, every shape fixed, channels first, 1×1 convolutions.

The residual stream is (1, H, 1, Q), and the numbers are those of `--target ane` (`export.decoder_weights`), so that
heads split off by `Reshape` and convolutions take the checkpoint's rows as they lie. Notable choices:
- the provider has no op that writes into a tensor in place, so that a call gives the keys and values of its Q rows,
  and whoever calls puts them into the cache; attention looks at both: scores over the cache and over the new rows
  stand side by side, `causalMask` (1, 1, Q, C + Q) says what each row sees;
- keys lie as (kv_heads, D, C), values as (kv_heads, C, D): `MatMul` has no flag to transpose, and these are the ways in
  which it reads them;
- no axis reaches 16,384, which the provider refuses: the head is several outputs, and a wide MLP several parts whose
  results are added;
- in float16 rows are divided by their largest value before a norm squares them;
- nothing has a rank above 4.
It knows neither files nor what the provider takes (tests count that).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
from onnx import TensorProto

from export.chunks import HEAD_CAP, head_split
from export.compression.blocks import row_blocks
from export.decoder_weights import ANE, decoder_weight, head_part
from export.layout import GraphSizes
from export.onnx.forms import DTYPES, Forms
from export.onnx.graph import Graph
from export.onnx.weights import Matrices
from export.parameters import GraphWeight, between
from fastvlm_ref.model.decoder import Decoder

SMALLEST = 2.0**-10  # of the largest value of a row by which it is divided
CHANNELS, LAST = 1, -1  # axes


class CoremlWriter:
    """Writes one function of a decoder into a graph; `sizes` say its Q and C, and what is folded into weights."""

    def __init__(self, graph: Graph, decoder: Decoder, sizes: GraphSizes, floats: int) -> None:
        self.graph, self.decoder, self.sizes, self.text = graph, decoder, sizes, decoder.config
        self.floats, self.matrices, self.forms = floats, Matrices(graph, floats), Forms(graph, floats)
        self.query, self.split = sizes.query, head_split(decoder.config, ANE)
        self.group = self.text.heads // self.text.kv_heads

    def write(self, head: bool) -> dict[str, int]:
        """Adds everything; without `head` the last layer gives keys and values alone. Returns what was clamped."""
        op, text, query = self.graph.op, self.text, self.query
        embeds = self.graph.input("inputsEmbeds", self.floats, [1, query, text.hidden_size])
        tables = [self.graph.input(name, self.floats, [1, 1, query, text.head_dim]) for name in ("ropeCos", "ropeSin")]
        width = self.sizes.context + query
        self._mask = self.graph.input("causalMask", self.floats, [1, 1, query, width])
        self._rope = self._tables(*tables)
        x = self._reshape(op("Transpose", embeds, perm=[0, 2, 1]), 1, text.hidden_size, 1, query)
        x = self.forms.times(x, 2.0**-self.sizes.protection.residual)
        for index in range(text.layers):
            with self.graph.scope(f"layers.{index}"):
                x = self._layer(index, x, last=not head and index == text.layers - 1)
        if head:
            with self.graph.scope("norm"):
                x = self._norm("norm.weight", x)
            self._head(x)
        return self.matrices.clamped

    def _tables(self, cos: str, sin: str) -> tuple[str, str]:
        """(1, 1, Q, D) twice as (1, D, 1, Q), the first half of the sine negative."""
        op, head_dim = self.graph.op, self.text.head_dim
        cos, sin = (op("Transpose", table, perm=[0, 3, 1, 2]) for table in (cos, sin))
        signs = np.ones((1, head_dim, 1, 1), DTYPES[self.floats])
        signs[:, : head_dim // 2] = -1
        return cos, op("Mul", sin, self.graph.constant(signs, "rope/signs"))

    def _layer(self, index: int, x: str, last: bool) -> str:
        """Returns the residual stream behind a layer; of the `last` one nothing but keys and values is wanted."""
        prefix, op = f"layers.{index}", self.graph.op
        with self.graph.scope("input_layernorm"):
            normed = self._norm(f"{prefix}.input_layernorm.weight", x)
        with self.graph.scope("self_attn"):
            keys, values = self._keys(index, normed), self._values(index, normed)
            if last:
                return x
            x = op("Add", x, self._convolution(f"{prefix}.self_attn.o_proj", self._mixed(index, normed, keys, values)))
        with self.graph.scope("post_attention_layernorm"):
            normed = self._norm(f"{prefix}.post_attention_layernorm.weight", x)
        with self.graph.scope("mlp"):
            for part in self._mlp(f"{prefix}.mlp", normed):
                x = op("Add", x, part)
        return x

    def _keys(self, index: int, x: str) -> str:
        """Returns rotated keys (1, kv_heads, D, Q), without their constant part, which is an output too."""
        text, op, prefix = self.text, self.graph.op, f"layers.{index}.self_attn"
        keys = self._reshape(self._convolution(f"{prefix}.k_proj", x), text.kv_heads, text.head_dim, 1, self.query)
        keys = self._rotated(keys)
        if self.sizes.shifts_keys:
            cos, sin = self._rope
            turn = op("Sub", cos, self.forms.number(1))
            for table, name in ((turn, "key_shift"), (sin, "key_shift_swapped")):
                keys = op("Add", keys, op("Mul", table, self._inside(self._weight(f"{prefix}.{name}"))))
        shape = [1, text.kv_heads, text.head_dim, self.query]
        keys = self._reshape(keys, *shape)
        self.graph.output(keys, f"newKeys.{index}", self.floats, shape)
        return f"newKeys.{index}"

    def _values(self, index: int, x: str) -> str:
        """Returns values (1, kv_heads, Q, D), which are an output too."""
        text, name = self.text, f"newValues.{index}"
        values = self._convolution(f"layers.{index}.self_attn.v_proj", x)
        values = self._reshape(values, 1, text.kv_heads, text.head_dim, self.query)
        values = self.graph.op("Transpose", values, perm=[0, 1, 3, 2])
        self.graph.output(values, name, self.floats, [1, text.kv_heads, self.query, text.head_dim])
        return name

    def _mixed(self, index: int, x: str, keys: str, values: str) -> str:
        """Returns attention of x (1, H, 1, Q) over cache and new rows, (1, heads · D, 1, Q), not projected."""
        text, op, context, query = self.text, self.graph.op, self.sizes.context, self.query
        rows, kv_heads = self.group * query, text.kv_heads
        past_keys = self.graph.input(f"pastKeys.{index}", self.floats, [1, kv_heads, text.head_dim, context])
        past_values = self.graph.input(f"pastValues.{index}", self.floats, [1, kv_heads, context, text.head_dim])
        q = self._convolution(f"layers.{index}.self_attn.q_proj", x)
        q = self._rotated(self._reshape(q, kv_heads, text.head_dim, self.group, query))
        q = op("Transpose", self._reshape(q, 1, kv_heads, text.head_dim, rows), perm=[0, 1, 3, 2])
        scores = op("Concat", op("MatMul", q, past_keys), op("MatMul", q, keys), axis=LAST)
        weights = self._softmax(scores)  # (1, kv_heads, G·Q, C + Q)
        split = self.forms.axes(context, query)
        old, new = self.graph.ops("Split", weights, split, count=2, axis=LAST)
        mixed = op("Add", op("MatMul", old, past_values), op("MatMul", new, values))  # (1, kv_heads, G·Q, D)
        mixed = op("Transpose", mixed, perm=[0, 1, 3, 2])
        return self._reshape(mixed, 1, text.heads * text.head_dim, 1, query)

    def _softmax(self, scores: str) -> str:
        """Softmax of masked scores, which are stored as scores · 2^−exponent."""
        width = self.sizes.context + self.query
        each = self._reshape(scores, self.text.kv_heads, self.group, self.query, width)
        masked = self.graph.op("Add", each, self._mask)
        weights = self.forms.softmax(masked, self.sizes.protection.scores)
        return self._reshape(weights, 1, self.text.kv_heads, self.group * self.query, width)

    def _rotated(self, x: str) -> str:
        """x·cos + (x₂, x₁)·sin of (kv_heads, D, …, Q)."""
        op, half = self.graph.op, self.text.head_dim // 2
        cos, sin = self._rope
        first, second = self.graph.ops("Split", x, self.forms.axes(half, half), count=2, axis=CHANNELS)
        swapped = op("Concat", second, first, axis=CHANNELS)
        return op("Add", op("Mul", x, cos), op("Mul", swapped, sin))

    def _mlp(self, prefix: str, x: str) -> Iterator[str]:
        """Parts (1, H, 1, Q) whose sum is the MLP of a normed x."""
        op, inner = self.graph.op, self.text.intermediate_size
        gate, up, down = (self._weight(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down"))
        for first, last in _parts(inner):
            opened, linear = (self._apply(_rows(weight, first, last), x) for weight in (gate, up))
            activated = op("Mul", op("Mul", opened, op("Sigmoid", opened)), linear)
            yield self._apply(_columns(down, first, last), activated)

    def _head(self, x: str) -> None:
        """Adds the logits as outputs, in parts where V is large."""
        for part in range(self.split.count):
            with self.graph.scope("lm_head"):
                logits = self._apply(head_part(self.decoder, part, self.split.rows, ANE), x)
                shape = [1, 1, self.split.rows]
                self.graph.output(self._reshape(logits, *shape), self.split.name(part), self.floats, shape)

    def _norm(self, name: str, x: str) -> str:
        """x / √(mean(x²) + eps) · gain over the channels."""
        op, eps = self.graph.op, self.text.rms_norm_eps * 4.0**-self.sizes.protection.residual
        if self.floats == TensorProto.FLOAT16:
            largest = op("ReduceMax", op("Max", x, self.forms.times(x, -1)), self.forms.axes(CHANNELS), keepdims=1)
            largest = op("Max", largest, self.forms.number(SMALLEST))
            x = op("Div", x, largest)
            root = op("Div", self.forms.number(eps**0.5), largest)
            added = op("Mul", root, root)
        else:
            added = self.forms.number(eps)
        mean = op("ReduceMean", op("Mul", x, x), self.forms.axes(CHANNELS), keepdims=1)
        normed = op("Div", x, op("Sqrt", op("Add", mean, added)))
        return op("Mul", normed, self._inside(self._weight(name)))

    def _convolution(self, module: str, x: str) -> str:
        biased = self.text.qkv_bias and module.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj")
        bias = self._inside(self._weight(f"{module}.bias")) if biased else None
        return self._apply(self._weight(f"{module}.weight"), x, bias)

    def _apply(self, weight: GraphWeight, x: str, bias: str | None = None) -> str:
        """Returns a 1×1 convolution of x by a weight (N, K, 1, 1)."""
        name = weight.name.removeprefix("decoder.")
        kernel = self.graph.weight(name, self.floats, weight.shape, lambda: self.matrices.numbers(weight, self.floats))
        return self.graph.op("Conv", x, kernel, *([] if bias is None else [bias]), kernel_shape=[1, 1])

    def _weight(self, name: str) -> GraphWeight:
        return decoder_weight(self.decoder, name, self.sizes, ANE)

    def _inside(self, weight: GraphWeight) -> str:
        """A small weight in the model's own file: releases of the provider could not read it elsewhere."""
        values = np.frombuffer(b"".join(self.matrices.numbers(weight, self.floats)), DTYPES[self.floats])
        return self.graph.constant(values.reshape(weight.shape), weight.name.removeprefix("decoder."))

    def _reshape(self, x: str, *shape: int) -> str:
        return self.forms.reshape(x, shape)


def _parts(width: int) -> Iterator[tuple[int, int]]:
    """Even parts first … last − 1 of an axis, none of which reaches 16,384."""
    count = -(-width // (HEAD_CAP - 1))
    each = -(-width // count)
    return ((first, min(first + each, width)) for first in range(0, width, each))


def _rows(weight: GraphWeight, first: int, last: int) -> GraphWeight:
    """Rows first … last − 1 of a weight (N, K, 1, 1), the weight itself where they are all."""
    count, *rest = weight.shape
    if last - first == count:
        return weight
    width = prod(rest)
    return replace(
        weight, name=_part_name(weight, first), shape=(last - first, *rest),
        pieces=lambda: between(weight.pieces(), first * width, last * width),
    )  # fmt: skip


def _columns(weight: GraphWeight, first: int, last: int) -> GraphWeight:
    """Columns first … last − 1 of a weight (N, K, 1, 1), the weight itself where they are all."""
    count, width, *rest = weight.shape
    if last - first == width:
        return weight
    return replace(
        weight, name=_part_name(weight, first), shape=(count, last - first, *rest),
        pieces=lambda: (rows[:, first:last].reshape(-1) for rows in row_blocks(weight.pieces(), width)),
    )  # fmt: skip


def _part_name(weight: GraphWeight, first: int) -> str:
    return f"{weight.name}.{first}"
