"""The language model's functions, op by op from the reference's decoder: what both targets have in common.

Layers, heads, eps and biases are read off the reference; the manifest's protection says which exponents there are. A
layer's keys are row 2l of the state, its values row 2l + 1, written at `position` in one piece and read back whole.
How tensors lie is `validation.audit.decoder_ane`'s and `decoder_gpu`'s. It knows no files and no numbers of weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from export.layout import GraphSizes
from validation.audit.expected import Axes, Parameter, Window
from validation.audit.forms import softmax
from validation.audit.walk import Walk
from validation.counterparts.decoder import DecoderPart
from validation.program.contents import Op, Value

Found = Value | None


class DecoderWalk(ABC):
    """The walk through `prefill` or `decode` of one package, of `query` rows; `part` is what the package holds."""

    def __init__(self, walk: Walk, part: DecoderPart, query: int) -> None:
        self.walk, self.part, self.query = walk, part, query
        self.sizes: GraphSizes = replace(part.sizes, query=query)
        self.text, self.chunk = part.sizes.text, part.chunk
        self.group = self.text.heads // self.text.kv_heads
        self.cos: Found = None  # the host's tables and mask as the layers take them
        self.sin: Found = None
        self.turn: Found = None  # cosine − 1, and the sine with a negative first half: where keys are shifted
        self.signed: Found = None
        self.mask: Found = None
        self.start: Found = None  # of the rows in the context, and what lies behind them
        self.end: Found = None

    def run(self, filling: bool) -> None:
        """Walks from the rows that come in to what goes out; filling: the last layer writes its state, no more."""
        walk = self.walk
        x = self.enter(walk.input("inputsEmbeds"))
        if self.chunk.layers:
            self.tables(walk.input("ropeCos"), walk.input("ropeSin"), walk.input("causalMask"))
            self._positions(walk.input("position"))
            x = self._layers(x, filling)
        if filling:
            return
        if self.chunk.parts and walk.function.name == "decode":
            self._heads(x)
            return
        walk.place = "its results"
        walk.gives(self.leave(x, self.text.hidden_size), "hiddenStates")

    def _layers(self, x: Found, filling: bool) -> Found:
        """All layers of the package; returns what leaves the last."""
        walk, state = self.walk, self.walk.input("kvCache")
        cache = walk.op("read_state", input=state)
        for number in range(self.chunk.layers):
            path = f"layers.{number}"
            normed = self._norm(x, f"{path}.input_layernorm", self.chunk.first + number)
            walk.place = f"{path}.self_attn"
            cache = self._stored(number, normed, cache, state)
            if filling and number == self.chunk.layers - 1:
                self._done(cache)
                return None
            keys, values = self._row(cache, 2 * number), self._row(cache, 2 * number + 1)
            x = walk.op("add", x=x, y=self.attend(number, normed, keys, values))
            normed = self._norm(x, f"{path}.post_attention_layernorm", self.chunk.first + number)
            x = walk.op("add", x=x, y=self._mlp(path, normed))
        return x

    def _stored(self, number: int, normed: Found, cache: Found, state: Found) -> Found:
        """Writes a layer's keys and values; returns the state as it is read after that."""
        written = self.walk.step("write_state", input=state, data=self._written(number, normed, cache))
        read = self.walk.step("read_state", input=state)
        self.walk.in_order(written, read)
        return read.outputs[0] if read is not None and read.outputs else None

    @abstractmethod
    def enter(self, embeds: Found) -> Found:
        """What comes from outside, (1, Q, H), as the layers take it."""

    @abstractmethod
    def leave(self, x: Found, width: int) -> Found:
        """A result as the world outside takes it, (1, Q, width)."""

    @abstractmethod
    def tables(self, cos: Found, sin: Found, mask: Found) -> None:
        """Finds the host's tables (1, 1, Q, D) and mask (1, 1, Q, C) as the layers take them."""

    @abstractmethod
    def norm(self, x: Found, parameter: str, eps: float) -> Found:
        """An RMSNorm of the residual stream."""

    @abstractmethod
    def linear(self, x: Found, path: str, width: int, biased: bool = False) -> Found:
        """A linear layer of `width` outputs."""

    @abstractmethod
    def written(self, path: str, normed: Found) -> Found:
        """The keys and values of a normed x, as the layer's two rows of the state have them."""

    @abstractmethod
    def attend(self, number: int, normed: Found, keys: Found, values: Found) -> Found:
        """The attention of a normed x over its layer's keys and values, projected."""

    @property
    @abstractmethod
    def written_axis(self) -> int:
        """Which axis of the state is that of positions."""

    def entered(self, x: Found) -> Found:
        """The rows that come into a chain, scaled as the residual stream is."""
        exponent = self.sizes.protection.residual
        return self.walk.op("mul", x=x, y=2.0**-exponent) if exponent and self.chunk.number == 1 else x

    def weights(self, scores: Found) -> Found:
        """The softmax of masked scores."""
        return softmax(self.walk, self.walk.op("add", x=scores, y=self.mask), self.sizes.protection.scores)

    def halves(self, x: Found, axis: int) -> tuple[Found, Found]:
        """Both halves of each head."""
        half = self.text.head_dim // 2
        return outputs(self.walk.step("split", x=x, axis=Axes((axis,)), split_sizes=[half, half]))

    def shifted(self, path: str, keys: Found) -> Found:
        """Rotated keys without the constant part of their bias."""
        if not self.sizes.shifts_keys:
            return keys
        own = f"{path}.key_shift"
        turned = self.walk.op("mul", x=Parameter(own), y=self.turn)
        crossed = self.walk.op("mul", x=Parameter(f"{own}_swapped"), y=self.signed)
        return self.walk.op("add", x=keys, y=self.walk.op("add", x=turned, y=crossed))

    def _norm(self, x: Found, path: str, layer: int) -> Found:
        self.walk.place = path
        module = self.part.decoder.layers[layer].get_submodule(path.rpartition(".")[2])
        return self.norm(x, f"{path}.weight", float(module.eps))  # type: ignore[arg-type]

    def _mlp(self, path: str, normed: Found) -> Found:
        walk, inner = self.walk, self.text.intermediate_size
        walk.place = f"{path}.mlp"
        gate = walk.op("silu", x=self.linear(normed, f"{path}.mlp.gate_proj", inner))
        middle = walk.op("mul", x=gate, y=self.linear(normed, f"{path}.mlp.up_proj", inner))
        return self.linear(middle, f"{path}.mlp.down_proj", self.text.hidden_size)

    def _positions(self, position: Found) -> None:
        """Where the rows begin in the context, and where they end."""
        self.walk.place = "position"
        at = self.walk.op("slice_by_index", x=position, begin=Window(((0, 1),), (0,)))
        self.start = self.walk.op("expand_dims", x=at, axes=[0])
        self.end = self.walk.op("add", x=self.start, y=self.query)

    def _written(self, number: int, normed: Found, cache: Found) -> Found:
        """The state with a layer's two rows written at the position; where a mask says so, an axis is taken whole."""
        axis = self.written_axis
        whole = [place not in (0, axis) for place in range(4)]
        first = tuple(self.start if place == axis else 2 * number if place == 0 else 0 for place in range(4))
        last = tuple(self.end if place == axis else 2 * number + 2 if place == 0 else 0 for place in range(4))
        both = self.written(f"layers.{number}.self_attn", normed)
        begin = self.walk.op("concat", values=first, axis=[0], interleave=False)
        end = self.walk.op("concat", values=last, axis=[0], interleave=False)
        return self.walk.op(
            "slice_update", x=cache, update=both, begin=begin, end=end, stride=[1] * 4, squeeze_mask=[False] * 4,
            begin_mask=[place > axis for place in range(4)], end_mask=whole,
        )  # fmt: skip

    def _row(self, cache: Found, row: int) -> Found:
        """One row of the state, whole."""
        return self.walk.op("slice_by_index", x=cache, begin=Window(((row, row + 1), None, None, None), (0,)))

    def _done(self, cache: Found) -> None:
        """One value of the state, which only makes sure that it is written."""
        self.walk.place = "its results"
        one: Any = (0, 1)
        for window in (
            Window((one, None, None, None)), Window((None, one, None, None), (1,)),
            Window((None, one, None)), Window((None, None, one)),
        ):  # fmt: skip
            cache = self.walk.op("slice_by_index", x=cache, begin=window)
        self.walk.gives(cache, "done")

    def _heads(self, x: Found) -> None:
        """The final norm and the package's parts of the head."""
        self.walk.place = "norm"
        normed = self.norm(x, "norm.weight", self.part.decoder.norm.eps)
        split = self.part.split
        for part in self.chunk.parts:
            self.walk.place = path = "lm_head" if split.count == 1 else f"lm_head.{part}"
            self.walk.gives(self.leave(self.linear(normed, path, split.rows), split.rows), split.name(part))


def outputs(op: Op | None) -> tuple[Found, Found]:
    """Returns the two results of a split."""
    if op is None or len(op.outputs) != 2:
        return None, None
    return op.outputs[0], op.outputs[1]
