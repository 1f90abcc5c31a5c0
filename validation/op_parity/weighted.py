"""Convolutions and linear layers, each alone: what the package's weights give, and what the reference's module gives.

In float32 nothing but the weights is rounded, so every output channel shows its own weights' error. A channel whose
weights lie below fp16's smallest normal number, 2⁻¹⁴, cannot be held to the precision of others: its error is judged as
if they were of that size. So is a channel of packed weights as if it were of the size of all: channels share tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from export.convert import constant_name
from validation.counterparts.counterpart import Change, Counterpart
from validation.op_parity.inputs import numbers
from validation.op_parity.piece import Case, Piece, Shape, Spot
from validation.program.anchors import Anchors

SMALLEST_NORMAL = 2.0**-14


class Answers:
    """What modules of the reference return, kept while the same module is asked: several ops may be parts of one."""

    def __init__(self) -> None:
        self._module = ""
        self._known: dict[object, Tensor] = {}

    @torch.no_grad()
    def of(self, module: str, call: Change, x: Tensor, key: object) -> Tensor:
        """Returns `call(x)`; `key` says which x of the module's it is."""
        if module != self._module:
            self._module, self._known = module, {}
        if key not in self._known:
            self._known[key] = call(x)
        return self._known[key]


def weighted(
    anchors: Anchors, counterpart: Counterpart, taken: Spot, call: Change, answers: Answers, part: str,
    *, axes: tuple[int, ...], size: int, channels: int,
) -> Piece:  # fmt: skip
    """Returns the piece of one weighted op.

    taken: what it takes; its `to_reference` gives what the module that is behind `call` takes. axes: those of
    positions, of which `size` each are tried. channels: the axis of channels. part: "encoder" or "language"; weights of
    fewer bits than fp16 are judged by their part's own row.
    """
    parameter, module = counterpart.parameter, counterpart.module

    def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
        op = anchors.weighted(parameter)
        kernel = op.need("weight").shape
        spreads = kernel[1] == 1 and math.prod(kernel[2:]) > 1  # of one channel each: several could cancel
        biased = op.value("bias") is not None
        for kind in ("normal", *(("impulse",) if spreads else ()), *(("tiny",) if biased else ())):
            x = numbers(kind, shapes[0], module)
            made = answers.of(module, call, taken.to_reference(x), (kind, shapes[0], counterpart.takes))
            expected = counterpart.result(made)
            floor = SMALLEST_NORMAL * math.sqrt(math.prod(kernel[1:]) * float(x.square().mean()) + 1)
            if packed():
                floor = max(floor, float(expected.square().mean().sqrt()))
            yield Case(kind, (x,), (expected,), floor)

    def packed() -> bool:
        return anchors.weighted(parameter).need("weight").made_by is not None

    def metric() -> str:
        return f"{part}_packed_db" if packed() else "weights_db"

    given = Spot(partial(anchors.given, parameter), torch.clone, counterpart.result)
    return Piece(
        parameter, counterpart.block, metric, (taken,), (given,), cases, (channels,),
        op=constant_name(f"{parameter}.weight"), free=axes, size=size,
    )  # fmt: skip
