"""Maps of the encoder: (1, C, h, w) stored as x · 2^−e in a program, in the reference as they are or as tokens."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

from torch import Tensor

from validation.op_parity.piece import Spot
from validation.program import Value

MAPS = (2, 3)  # the axes of positions
POINTS = 8  # side of the maps that what works on channels alone is tried on


def spot(find: Callable[[], Value], exponent: int, factor: float = 1.0) -> Spot:
    """Returns a value stored as x · factor · 2^−exponent."""
    into = factor * 2.0**-exponent
    return Spot(find, lambda x: x / into, lambda x: x * into)


def tokens(x: Tensor) -> Tensor:
    """(1, C, h, w) as (1, P, C), P = h · w, row by row."""
    return x.flatten(2).transpose(1, 2)


def maps(x: Tensor) -> Tensor:
    """(1, P, C) as square maps (1, C, √P, √P)."""
    side = isqrt(x.shape[1])
    return x.transpose(1, 2).reshape(1, -1, side, side)
