"""The decoder in closed form: each op of `prefill` and `decode`, over all packages of the language model.

Notable choices: the ops are those of `export.decoder_ane` and `export.decoder_gpu`, layer for layer; `prefill` does of
the last layer nothing but keys and values, of which it returns one number, and has no head; attention is over all C
positions, however few are filled.
What is left out (the shift of keys that a checkpoint may ask for, hidden states that one package hands to the next) is
a few per mille. Tests hold FLOPs and bytes against packages.
It knows no chips and no packages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from export.chunks import head_split
from fastvlm_ref.config import TextConfig
from validation.fit.tower import Stores, dense
from validation.fit.work import HALF, Shape, Weights, Work, elementwise, gathered, product, reduction

NORM_FLOPS = 5  # of layer_norm by element; its gain is one more


def prefill_work(text: TextConfig, query: int, context: int, target: str, stores: Stores = dense) -> list[Work]:
    """Returns the ops of one call of `prefill`: `query` rows over a state of `context` positions."""
    layers, last = _Layers(text, query, context, target, stores), text.layers - 1
    return gathered([*layers.whole(last), *layers.norm(), *layers.write(last), *layers.done()])


def decode_work(text: TextConfig, context: int, target: str, stores: Stores = dense) -> list[Work]:
    """Returns the ops of one step: one row through all layers and the head."""
    layers = _Layers(text, 1, context, target, stores)
    return gathered([*layers.whole(text.layers), *layers.norm(), *layers.head()])


def rows_work(text: TextConfig, rows: int, context: int, target: str, stores: Stores = dense) -> list[Work]:
    """Returns the ops of `rows` rows at once through every layer, each whole, with the head for the last row alone.

    That is how others prefill: this project's own prefill ends with the last layer's keys and values.
    """
    layers, last = (_Layers(text, query, context, target, stores) for query in (rows, 1))
    return gathered([*layers.whole(text.layers), *last.norm(), *last.head()])


@dataclass(frozen=True)
class _Layers:
    """The ops of layers and head: Q rows over C positions."""

    text: TextConfig
    query: int
    context: int
    target: str
    stores: Stores

    @property
    def elements(self) -> int:
        """Of the residual stream."""
        return self.query * self.text.hidden_size

    def whole(self, count: int) -> Iterator[Work]:
        """The first `count` layers; those that are stored alike are walked through once, however many they are."""
        first: dict[tuple[Weights, ...], int] = {}
        alike = Counter(first.setdefault(self.stored(number), number) for number in range(count))
        for number, times in alike.items():
            layer = (*self.norm(), *self.write(number), *self.attend(number), *self.norm(), *self.mlp(number))
            yield from (work.times(times) for work in layer)

    def stored(self, number: int) -> tuple[Weights, ...]:
        """How the weights of a layer are stored, which is all that tells one layer from another."""
        return tuple(self.stores(f"language.layers.{number}.{name}", shape) for name, shape in self.shapes())

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """The projections of a layer: name, and shape (outputs, inputs)."""
        text, queries = self.text, self.text.heads * self.text.head_dim
        yield "self_attn.q_proj", (queries, text.hidden_size)
        yield "self_attn.k_proj", (text.kv_width, text.hidden_size)
        yield "self_attn.v_proj", (text.kv_width, text.hidden_size)
        yield "self_attn.o_proj", (text.hidden_size, queries)
        yield "mlp.gate_proj", (text.intermediate_size, text.hidden_size)
        yield "mlp.up_proj", (text.intermediate_size, text.hidden_size)
        yield "mlp.down_proj", (text.hidden_size, text.intermediate_size)

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = False) -> Work:
        """A projection of Q rows; for a GPU it reads a bias in any case."""
        shape: Shape = (outputs, inputs)
        weights = [self.stores(f"language.layers.{name}", shape)]
        return _linear(self.query, shape, weights, bias or self.target == "gpu")

    def norm(self) -> Iterator[Work]:
        """`BoundedRMSNorm` for the engine, `RMSNormGraph` for a GPU: layer norm of [x, −x]."""
        n, width = self.elements, self.text.hidden_size
        gain = Weights(HALF * width, HALF * width)
        if self.target == "ane":
            yield elementwise("abs", n)
            yield reduction("reduce_max", n, self.query)
            yield elementwise("small", self.query).times(4)
            yield elementwise("mul", n)
        yield elementwise("mul", n)
        yield elementwise("concat", 2 * n, flops=0)
        if self.target == "ane":
            yield elementwise("layer_norm", 2 * n, flops=NORM_FLOPS)
            yield elementwise("split", 2 * n, flops=0)
            yield Work("mul", n, (gain,), tensors=(HALF * n,) * 2)
        else:
            yield Work("layer_norm", (NORM_FLOPS + 1) * 2 * n, (gain, gain), tensors=(2 * HALF * n,) * 2)
            yield elementwise("slice_by_index", n, flops=0)

    def rotary(self, width: int) -> Iterator[Work]:
        """Queries or keys, turned: `width` numbers for each row."""
        n = self.query * width
        yield elementwise("split", n, flops=0)
        yield elementwise("mul", n).times(2)
        yield elementwise("concat", n, flops=0)
        yield elementwise("add", n, 2)
        if self.target == "gpu":
            yield elementwise("mul", n // 2)
            yield from self.turned(width)

    def turned(self, width: int) -> Iterator[Work]:
        """A transpose between rows and heads, which one row does not need."""
        if self.target == "gpu" and self.query > 1:
            yield elementwise("transpose", self.query * width, flops=0)

    def write(self, number: int) -> Iterator[Work]:
        """Keys and values of the rows into the state."""
        text, width = self.text, self.text.kv_width
        for name in ("k", "v"):
            yield self.linear(f"{number}.self_attn.{name}_proj", text.hidden_size, width, text.qkv_bias)
        yield from self.rotary(width)
        yield from self.turned(width)
        rows = HALF * self.query * 2 * width
        yield Work("concat", 0, tensors=(rows, rows))
        yield Work("slice_update", 0, state=rows, tensors=(rows,))

    @property
    def held(self) -> int:
        """Bytes of the keys, or of the values, of one layer."""
        return HALF * self.text.kv_width * self.context

    def done(self) -> Iterator[Work]:
        """What makes a call of prefill complete: one number, cut out of the last layer's state step by step."""
        head = self.held // self.text.kv_heads
        yield Work("slice_by_index", 0, state=self.held, tensors=(self.held,))
        yield Work("slice_by_index", 0, tensors=(head, head))

    def attend(self, number: int) -> Iterator[Work]:
        """Attention over all positions of the state, projected, and added to the stream."""
        text, queries = self.text, self.text.heads * self.text.head_dim
        yield Work("slice_by_index", 0, state=self.held, tensors=(self.held,), count=2)
        yield self.linear(f"{number}.self_attn.q_proj", text.hidden_size, queries, text.qkv_bias)
        yield from self.rotary(queries)
        yield from self.scores()
        yield from self.turned(queries)
        yield self.linear(f"{number}.self_attn.o_proj", queries, text.hidden_size)
        yield elementwise("add", self.elements, 2)

    def scores(self) -> Iterator[Work]:
        """q·k, the mask, softmax, and what the weights mix."""
        text = self.text
        rows = text.heads // text.kv_heads * self.query
        q, keys = (text.kv_heads, text.head_dim, rows), (text.kv_heads, text.head_dim, self.context)
        scores = (text.kv_heads, rows, self.context)
        mask = HALF * self.query * self.context
        yield product(q, keys, scores, text.head_dim)
        yield Work("add", prod(scores), tensors=(HALF * prod(scores), mask, HALF * prod(scores)))
        yield elementwise("softmax", prod(scores), flops=5)
        yield product(keys, scores, q, self.context)

    def mlp(self, number: int) -> Iterator[Work]:
        """down(silu(gate(x)) · up(x)), and the sum with the stream."""
        text, inner = self.text, self.query * self.text.intermediate_size
        yield self.linear(f"{number}.mlp.gate_proj", text.hidden_size, text.intermediate_size)
        yield elementwise("silu", inner)
        yield self.linear(f"{number}.mlp.up_proj", text.hidden_size, text.intermediate_size)
        yield elementwise("mul", inner, 2)
        yield self.linear(f"{number}.mlp.down_proj", text.intermediate_size, text.hidden_size)
        yield elementwise("add", self.elements, 2)

    def head(self) -> Iterator[Work]:
        """The parts of the head, which are stored alike."""
        split = head_split(self.text, self.target)
        shape = (split.rows, self.text.hidden_size)
        part = _linear(self.query, shape, [self.stores("language.lm_head", shape)], self.target == "gpu")
        yield part.times(split.count)


def _linear(rows: int, shape: Shape, weights: list[Weights], bias: bool) -> Work:
    """A projection of `rows` rows by a weight (outputs, inputs)."""
    outputs, inputs = shape
    if bias:
        weights = [*weights, Weights(HALF * outputs, HALF * outputs)]
    flops = 2 * rows * outputs * inputs + (rows * outputs if bias else 0)
    return Work("linear", flops, tuple(weights), tensors=(HALF * rows * inputs, HALF * rows * outputs))
