"""What stands between weighted ops: activations, sums, norms, and the ops that only move or scale.

The numbers are made in the reference's units and taken to the program's, and so is what the reference's own code makes
of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from validation.op_parity.inputs import numbers
from validation.op_parity.piece import Case, Piece, Shape, Spot

Compute = Callable[..., Tensor]
ACTIVATION = ("normal", "bend", "large", "tiny")
LINEAR = ("normal", "large")
# Root mean square of the rows that a norm is tried on: ordinary, huge, and small enough that eps counts.
ROW_SIZES = torch.tensor((1.0, 1e4, 1e-3, 1e-2, 30.0))


def between(
    name: str, block: str, begins: Sequence[Spot], ends: Sequence[Spot], compute: Compute,
    *, kinds: Sequence[str] = LINEAR, rows: tuple[int, ...] = (1,), **more: Any,
) -> Piece:  # fmt: skip
    """Returns a piece of which each end is `compute` of the beginnings, all in the reference's units and layout."""

    def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
        for kind in kinds:
            made = [
                numbers(kind, reference_shape(spot, shape), f"{name} {at}")
                for at, (spot, shape) in enumerate(zip(begins, shapes, strict=True))
            ]
            yield _case(kind, made, begins, ends, compute)

    return Piece(name, block, "plain_db", tuple(begins), tuple(ends), cases, rows, **more)


def norm(
    name: str, block: str, begin: Spot, ends: Sequence[Spot], compute: Compute,
    *, positions: tuple[int, ...], rows: tuple[int, ...], op: str = "",
) -> Piece:  # fmt: skip
    """Returns the piece of a norm, tried on rows of all sizes; `positions`: their axes in the reference's layout."""

    def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
        shape = reference_shape(begin, shapes[0])
        spread = [length if axis in positions else 1 for axis, length in enumerate(shape)]
        count = math.prod(spread)
        for first in range(0, len(ROW_SIZES), count):
            sizes = ROW_SIZES[(torch.arange(count) + first) % len(ROW_SIZES)].reshape(spread)
            x = numbers("normal", shape, f"{name} {first}") * sizes
            yield _case("rows of five sizes", [x], (begin,), ends, compute)

    return Piece(name, block, "plain_db", (begin,), tuple(ends), cases, rows, op=op)


def reference_shape(spot: Spot, shape: Shape) -> Shape:
    """Returns the shape that a value of the program has in the reference."""
    return tuple(spot.to_reference(torch.empty(shape)).shape)


@torch.no_grad()
def _case(kind: str, made: Sequence[Tensor], begins: Sequence[Spot], ends: Sequence[Spot], compute: Compute) -> Case:
    result = compute(*made)
    inputs = [spot.to_program(x) for spot, x in zip(begins, made, strict=True)]
    return Case(kind, inputs, [spot.to_program(result) for spot in ends])
