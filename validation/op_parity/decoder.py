"""The pieces of one package of the language model, layer by layer: linear layers, norms, attention, MLP, sums, head.

A layer's own weights are read from the checkpoint while its pieces are compared, and not longer. `prefill` and `decode`
hold the same layers: the pieces of both are given one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.contract import EMBEDS, HIDDEN
from export.convert import constant_name
from export.weights import saturate
from fastvlm_ref.checkpoint.stream import materialised
from fastvlm_ref.model.decoder import DecoderLayer, RMSNorm
from validation.counterparts.decoder import FILLED, LINEAR, MLP, DecoderPart
from validation.op_parity.between import ACTIVATION, between, norm
from validation.op_parity.cached import CachedAttention, States
from validation.op_parity.decoder_attention import AttentionPieces
from validation.op_parity.features import ANE, features, heads, rows
from validation.op_parity.partly import partly, with_values
from validation.op_parity.piece import SMALLEST, Piece, Spot
from validation.op_parity.weighted import Answers, weighted
from validation.program import Value
from validation.program.anchors import Anchors, Unmatched

TRIED = 32  # rows of features that a linear layer is tried on


def decoder_pieces(
    part: DecoderPart, anchors: Mapping[str, Anchors], only: str | None = None
) -> Iterator[tuple[str, Piece]]:
    """Gives the pieces of a package's functions, each with its function's name; of one block alone, `only`.

    A piece has to be compared before the next is asked for: its reference may be dropped then.
    """
    states, answers = States(), Answers()
    functions = [FunctionPieces(part, name, each, states, answers) for name, each in anchors.items()]
    for number, layer in enumerate(part.layers):
        if only in (None, f"decoder.layers.{layer}"):
            with materialised(part.decoder.layers[layer]):
                for function in functions:
                    yield from ((function.name, piece) for piece in function.layer(number))
    if only in (None, "decoder.norm"):
        for function in functions:
            yield from ((function.name, piece) for piece in function.head())


class FunctionPieces:
    """The pieces of one function of a package."""

    def __init__(self, part: DecoderPart, name: str, anchors: Anchors, states: States, answers: Answers) -> None:
        self.part, self.name, self.anchors, self.states, self.answers = part, name, anchors, states, answers
        self.known = {each.parameter: each for each in part.counterparts(name)}
        self.positions = (3,) if part.target == ANE else (1,)

    def layer(self, number: int) -> Iterator[Piece]:
        """Gives the pieces of layer `number` of the package."""
        layer, path = self.part.layers[number], f"layers.{number}"
        module, block = cast(DecoderLayer, self.part.decoder.layers[layer]), f"decoder.layers.{layer}"
        cached = CachedAttention(self.part, number, module.self_attn)
        attention, stream = AttentionPieces(cached, self.anchors, self.states), self._stream(number)
        filling = f"{path}.self_attn.q_proj" not in self.known
        projections = [f"{path}.{name}" for name in (FILLED if filling else LINEAR[:3])]
        yield self._norm(f"{path}.input_layernorm", block, module.input_layernorm, stream, projections)
        yield from map(self._linear, projections)
        if filling:
            yield attention.filling()
            return
        yield attention.attention()
        middle = yield from self._added(f"{path}.self_attn.o_proj", block, stream)
        yield from self._mlp(path, block, module, middle)
        if number == len(self.part.layers) - 1 and not self._heads:
            yield self._leaving(
                "hidden states", block, self._stream(number + 1), rows(self._result(HIDDEN), self.residual)
            )

    def head(self) -> Iterator[Piece]:
        """Gives the pieces of the final norm and the parts of the head, where the function has any."""
        parts = [(self.part.split.name(part), parameter) for part, parameter in self._heads.items()]
        if parts:
            block, paths = "decoder.norm", list(self._heads.values())
            yield self._norm("norm", block, self.part.decoder.norm, self._stream(len(self.part.layers)), paths)
            for name, path in parts:
                yield self._linear(path)
                yield self._leaving(name, block, self._at(self.anchors.given, path), rows(self._result(name)))

    @property
    def _heads(self) -> dict[int, str]:
        """The head's parts that the function gives, with their parameters."""
        parameters = [name for name in self.known if name.startswith("lm_head")]
        return dict(zip(self.part.chunk.parts, parameters, strict=True)) if parameters else {}

    @property
    def residual(self) -> int:
        """The exponent of the residual stream."""
        return self.part.sizes.protection.residual

    def _at(self, find: Callable[[str], Value], path: str, exponent: int = 0) -> Spot:
        return features(partial(find, path), self.part.target, exponent)

    def _stream(self, number: int) -> Spot:
        """The residual stream before layer `number`: what comes from outside, or the sum behind the layer before."""
        if number:
            return self._at(self.anchors.added, f"layers.{number - 1}.mlp.down_proj", self.residual)
        embeds = partial(_named, self.anchors.function.inputs, EMBEDS)
        return rows(embeds, 0 if self.part.chunk.number == 1 else self.residual)

    def _norm(self, name: str, block: str, module: RMSNorm, begin: Spot, paths: Sequence[str]) -> Piece:
        ends = [self._at(self.anchors.taken, path) for path in paths]
        held, _ = saturate(name, module.weight)
        stored = with_values(module, weight=held.half().float(), eps=stored_eps(self.part, module.eps))
        return norm(
            name, block, begin, ends, stored, positions=(1,), rows=self.positions,
            op=constant_name(f"{name}.weight"),
        )  # fmt: skip

    def _linear(self, path: str) -> Piece:
        """A linear layer alone; o_proj takes its features head by head."""
        counterpart, sizes = self.known[path], self.part.sizes
        taken = self._at(self.anchors.taken, path, counterpart.takes)
        if path.endswith("o_proj"):
            taken = heads(taken.find, self.part.target, sizes.text, counterpart.takes)
        module = cast(nn.Linear, self.part.decoder.get_submodule(counterpart.module.removeprefix("decoder.")))
        precise = path.endswith("k_proj") and sizes.shifts_keys  # what is left of a key is far smaller than its bias
        call = partial(_in_float64, module) if precise else module
        return weighted(
            self.anchors, counterpart, taken, call, self.answers, "language",
            axes=self.positions, size=TRIED, channels=1 if self.part.target == ANE else 2,
        )  # fmt: skip

    def _added(self, path: str, block: str, stream: Spot) -> Generator[Piece, None, Spot]:
        """A projection and the sum behind it; returns the sum."""
        yield self._linear(path)
        result, summed = (self._at(find, path, self.residual) for find in (self.anchors.given, self.anchors.added))
        yield between(f"{path} sum", block, (stream, result), (summed,), torch.add, rows=self.positions)
        return summed

    def _mlp(self, path: str, block: str, module: DecoderLayer, stream: Spot) -> Iterator[Piece]:
        gate, up, down = (f"{path}.{name}" for name in MLP)
        name = f"{path}.post_attention_layernorm"
        yield self._norm(name, block, module.post_attention_layernorm, stream, (gate, up))
        yield from map(self._linear, (gate, up))
        begins = [self._at(self.anchors.given, each, self.known[each].gives) for each in (gate, up)]
        end = self._at(self.anchors.taken, down, self.known[down].takes)

        def act(gate: Tensor, up: Tensor) -> Tensor:
            return partly(module.mlp, None, given={"gate_proj": gate, "up_proj": up}, wanted="down_proj")

        yield between(f"{path}.mlp silu", block, begins, (end,), act, kinds=ACTIVATION, rows=self.positions)
        yield from self._added(down, block, stream)

    def _leaving(self, name: str, block: str, begin: Spot, end: Spot) -> Piece:
        return between(name, block, (begin,), (end,), torch.clone, rows=(1,), optional=True)

    def _result(self, name: str) -> Callable[[], Value]:
        return partial(_named, self.anchors.function.results, name)


def stored_eps(part: DecoderPart, eps: float) -> float:
    """Returns the eps that a norm of the residual stream computes with: as fp16 holds it (`export.norms`)."""
    guard = part.sizes.protection
    exponent = 0 if part.target == ANE and guard.safe_forms else guard.residual
    return max(float(np.float16(eps * 4.0**-exponent)), SMALLEST) * 4.0**exponent


def _in_float64(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x.double(), module.weight.double(), module.bias.double())


def _named(values: Sequence[Value], name: str) -> Value:
    found = [value for value in values if value.name == name]
    if not found:
        raise Unmatched(f"the function has no {name}, it has {', '.join(value.name for value in values)}")
    return found[0]
