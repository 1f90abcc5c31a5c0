"""What is compared: a piece of a function, what the reference makes of the same numbers, and where each value lies.

A piece is made of places, found in the program when it is compared, so that one that a program lacks is one finding.
Its cases are made for the shapes that the program has there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from validation.counterparts.counterpart import Change
from validation.program import Value

Shape = tuple[int, ...]
SMALLEST = 2.0**-24  # of fp16: what it cannot tell from zero


@dataclass(frozen=True)
class Spot:
    """A value of a program and of the reference.

    find: the program's value, Unmatched where it is not there. to_reference: the program's numbers, float32, in the
    reference's units and layout; to_program: the other way.
    """

    find: Callable[[], Value]
    to_reference: Change
    to_program: Change


@dataclass(frozen=True)
class Case:
    """Numbers for one run of a piece.

    kind: what is special about them. inputs: as `MILModel` takes them, in the order of the piece's beginnings, but for
    its state. expected: what each of its ends should be, but for the state. floor: what a row counts as at least when
    its error is judged. state: its value before and behind the piece.
    """

    kind: str
    inputs: Sequence[Any]
    expected: Sequence[Tensor]
    floor: float = SMALLEST
    state: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Written:
    """The state of a piece: its name, which of its rows are the piece's own, and the axes that tell vectors apart."""

    name: str
    rows: slice
    vectors: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Some ops of a function, from the beginnings to the ends.

    name, block: as reports call it and the block around it. metric: the row of the table by which it is judged, where
    the program decides it a function. op: the constant, or the value, that a finding names; that of the last end where
    it is empty. cases: for the shapes of the beginnings. rows: the axes of an end along which rows are told apart.
    free, size: axes that may have any length, and the one that is taken. since: the value behind which the state is
    handed over. optional: nothing need stand there.
    """

    name: str
    block: str
    metric: str | Callable[[], str]
    begins: tuple[Spot, ...]
    ends: tuple[Spot, ...]
    cases: Callable[[Sequence[Shape]], Iterator[Case]]
    rows: tuple[int, ...]
    op: str = ""
    free: tuple[int, ...] = ()
    size: int = 0
    since: Callable[[], str] | None = None
    state: Written | None = None
    optional: bool = False
