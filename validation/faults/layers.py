"""The parts of a decoder layer and of an encoder block in a program: what faults of wiring are planted between.

Found from the layer's weights, along the flow of values. They lie as `--target ane` has them (`export.decoder_ane`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from validation.faults.bench import Bench
from validation.faults.programs import FunctionEdit, result, taken

# Every FastViTHD has these; a decoder has at least three layers, and `prefill` lacks the end of its last.
LAYER = 1
MIXER, ATTENTION = "network.4.0", "network.7.0"


@dataclass(frozen=True)
class Residual:
    """A sum of the residual stream: what it adds to (`stream`), what it adds (`branch`), and the op."""

    op: Any
    stream: str
    branch: str

    @property
    def sum(self) -> str:
        """What the stream is behind it."""
        return result(self.op)


def residual(function: FunctionEdit, parameter: str) -> Residual:
    """Returns the sum that the result of a weight's op is added in; of its two terms the stream is the older one."""
    op = function.ahead(function.weighted(parameter), "add")
    stream, branch = sorted((taken(op, "x"), taken(op, "y")), key=function.place)
    return Residual(op, stream, branch)


@dataclass(frozen=True)
class LayerEdit:
    """One layer of the decoder in one function."""

    function: FunctionEdit
    number: int = LAYER

    def weighted(self, name: str) -> Any:
        """Returns the op of a weight: `self_attn.q_proj`, `mlp.up_proj`."""
        return self.function.weighted(f"layers.{self.number}.{name}")

    @cached_property
    def attended(self) -> Residual:
        """Where attention is added."""
        return residual(self.function, f"layers.{self.number}.self_attn.o_proj")

    @cached_property
    def left(self) -> Residual:
        """Where the MLP is added."""
        return residual(self.function, f"layers.{self.number}.mlp.down_proj")

    @cached_property
    def keys(self) -> Any:
        """The sum that gives rotated keys (kv_heads, D, 1, Q)."""
        return self.function.ahead(self.weighted("self_attn.k_proj"), "add")

    @cached_property
    def update(self) -> Any:
        """The op that puts this layer's keys and values into the state."""
        return self.function.ahead(self.weighted("self_attn.k_proj"), "slice_update")

    @cached_property
    def softmax(self) -> Any:
        """The softmax of its scores."""
        return self.function.behind(self.weighted("self_attn.o_proj"), "softmax")

    @cached_property
    def scores(self) -> Any:
        """The product of queries and keys."""
        return self.function.behind(self.softmax, "matmul")

    @cached_property
    def mixing(self) -> Any:
        """The product of values and weights."""
        return self.function.behind(self.weighted("self_attn.o_proj"), "matmul")

    @property
    def reads(self) -> tuple[Any, Any]:
        """The ops that cut keys and values out of the state."""
        return self.function.maker(taken(self.scores, "y")), self.function.maker(taken(self.mixing, "x"))


def in_encoder(bench: Bench, change: Callable[[FunctionEdit], None]) -> None:
    """Changes every function of the vision encoder."""
    with bench.encoder() as program:
        for function in program.functions.values():
            change(function)


def in_language(bench: Bench, change: Callable[[LayerEdit], None]) -> None:
    """Changes one layer of every function of the language model."""
    with bench.language() as program:
        for function in program.functions.values():
            change(LayerEdit(function))
