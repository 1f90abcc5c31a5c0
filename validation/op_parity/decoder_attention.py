"""Attention of a decoder layer between its projections, over a state that holds random keys and values.

What lies behind the position is as random as what lies before it: the mask alone keeps it out. The piece's keys and
values must lie in the state afterwards, and nothing else of it may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from export.contract import STATE
from validation.host import causal_mask
from validation.op_parity.cached import CachedAttention, States
from validation.op_parity.features import ANE, features, heads, rows
from validation.op_parity.inputs import numbers
from validation.op_parity.piece import Case, Piece, Shape, Spot, Written
from validation.program import Value
from validation.program.anchors import Anchors


class AttentionPieces:
    """The pieces of one layer's attention in one function."""

    def __init__(self, cached: CachedAttention, anchors: Anchors, states: States) -> None:
        self.cached, self.anchors, self.states = cached, anchors, states
        self.part, self.path = cached.part, f"layers.{cached.number}.self_attn"
        layer, guard, target = self.part.layers[cached.number], self.part.sizes.protection, self.part.target
        text = self.part.sizes.text
        self.name, self.block = f"{self.path} attention", f"decoder.layers.{layer}"
        self.queries = heads(self._given("q_proj"), target, text, guard.scores, text.head_dim**-0.5)
        self.keys = features(self._given("k_proj"), target)
        self.values = features(self._given("v_proj"), target, guard.values_of(layer))
        self.mixed = heads(partial(anchors.taken, f"{self.path}.o_proj"), target, text, guard.values_of(layer))

    def attention(self) -> Piece:
        """Returns what makes o_proj's input of queries, keys and values, and writes the last two into the state."""
        named = ("ropeCos", "ropeSin", "causalMask", "position")
        return self._piece((self.queries, self.keys, self.values, *map(self._input, named)), (self.mixed,), True)

    def filling(self) -> Piece:
        """Returns what writes keys and values alone, where a layer is asked for nothing else."""
        named = ("ropeCos", "ropeSin", "position")
        done = rows(lambda: self.anchors.function.results[0])
        return self._piece((self.keys, self.values, *map(self._input, named)), (done,), False)

    def _piece(self, begins: Sequence[Spot], ends: Sequence[Spot], mixes: bool) -> Piece:
        own = ("q_proj", "k_proj", "v_proj") if mixes else ("k_proj", "v_proj")
        first = partial(min, [f"{self.path}.{name}" for name in own], key=self._place)
        channels_first = self.part.target == ANE
        return Piece(
            self.name, self.block, "plain_db", tuple(begins), tuple(ends), partial(self._cases, mixes),
            (3,) if channels_first and mixes else (1,), since=lambda: self.anchors.given(first()).name,
            state=Written(STATE, self.cached.rows, (0, 1, 3) if channels_first else (0, 1, 2)),
        )  # fmt: skip

    def _cases(self, mixes: bool, shapes: Sequence[Shape]) -> Iterator[Case]:
        text, query = self.part.sizes.text, self._input("ropeCos").find().shape[2]
        before = self.states.of(self._input(STATE).find().shape)
        for position in self._positions(query):
            seed = f"{self.block} {position}"
            queries = numbers("wide", (1, query, text.heads * text.head_dim), seed)
            keys, values = (numbers("normal", (1, query, text.kv_width), f"{seed} {part}") for part in "kv")
            mixed, after = self.cached.attend(queries, keys, values, position, before)
            written = [self.keys.to_program(keys), self.values.to_program(values)]
            tables = [table[None, None] for table in self.cached.rope(position, query)]
            at, kind = torch.tensor([position], dtype=torch.int32), f"position {position} and wide"
            if mixes:
                mask = torch.from_numpy(causal_mask(position, query, query, self.part.sizes.context)).float()
                inputs = [self.queries.to_program(queries), *written, *tables, mask, at]
                yield Case(kind, inputs, (self.mixed.to_program(mixed),), state=(before, after))
            else:
                yield Case(kind, [*written, *tables, at], (after[:1, 0, :1, :1],), state=(before, after))

    def _positions(self, query: int) -> list[int]:
        """An odd one in the middle; for the first layer the first and the last that there can be as well."""
        last = self.part.sizes.context - query
        middle = min(last, last // 2 | 1)
        return sorted({0, middle, last}) if self.cached.number == 0 else [middle]

    def _given(self, leaf: str) -> Callable[[], Value]:
        return partial(self.anchors.given, f"{self.path}.{leaf}")

    def _place(self, parameter: str) -> int:
        return self.anchors.order[id(self.anchors.weighted(parameter))]

    def _input(self, name: str) -> Spot:
        def find() -> Value:
            return next(value for value in self.anchors.function.inputs if value.name == name)

        return rows(find)
