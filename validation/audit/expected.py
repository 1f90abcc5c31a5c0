"""What an argument of an op should be, and in which words a difference is told.

Numbers are compared as the constant stores them, bit for bit: 1e-6 is 1.0133e-06 in fp16. An axis counts from either
end, a length that is stored as -1 is the one that is left. Nothing here knows which op stands where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.convert import constant_name
from validation.program.contents import Op, Value

SHOWN = 8  # numbers of a constant that a message holds
# coremltools never stores a small scalar as 0: it takes the smallest positive fp16 (FP16ComputePrecision,
# _check_underflow_to_zero), also for what rounds to that number.
SMALLEST_HALF = 2.0**-24


class Expected(ABC):
    """What an argument should be. `covers`: the other parameters that are looked at with it."""

    covers: tuple[str, ...] = ()

    @abstractmethod
    def difference(self, op: Op, parameter: str) -> str | None:
        """Returns in words how `op` differs, None where it does not; PackageError where a constant is damaged."""


@dataclass(frozen=True)
class Parameter(Expected):
    """The constant of a graph's parameter, by the parameter's name; its numbers are `validation.audit.weights`'."""

    name: str

    @property
    def constant(self) -> str:
        """The name of the constant in a program."""
        return constant_name(self.name)

    def difference(self, op: Op, parameter: str) -> str | None:
        value = op.value(parameter)
        found = "nothing" if value is None else value.name or "a constant without a name"
        return None if found == self.constant else f"{parameter} is {found}, expected {self.constant}"


@dataclass(frozen=True)
class Text(Expected):
    """A string."""

    text: str

    def difference(self, op: Op, parameter: str) -> str | None:
        found = op.text(parameter)
        return None if found == self.text else f"{parameter} is {found!r}, expected {self.text!r}"


@dataclass(frozen=True)
class Numbers(Expected):
    """Numbers in order; an array must have that shape too."""

    numbers: Any

    def difference(self, op: Op, parameter: str) -> str | None:
        value, found = op.value(parameter), op.numbers(parameter)
        wanted = np.asarray(self.numbers)
        if value is None or found is None or value.dtype is None:
            return f"{parameter} is {described(value)}, expected {listed(wanted)}"
        stored = stored_as(wanted, value.dtype.numpy)
        held = np.asarray(found, value.dtype.numpy)
        same = held.shape == stored.reshape(-1).shape and bool((held == stored.reshape(-1)).all())
        if same and wanted.ndim > 1 and value.shape != wanted.shape:
            return f"{parameter} has shape {list(value.shape)}, expected {list(wanted.shape)}"
        return None if same else f"{parameter} is {listed(held)}, expected {listed(stored)}"


@dataclass(frozen=True)
class Zeros(Expected):
    """So many zeros: the bias of a layer that has none."""

    count: int

    def difference(self, op: Op, parameter: str) -> str | None:
        found = op.numbers(parameter)
        if found is None or len(found) != self.count:
            return f"{parameter} is {described(op.value(parameter))}, expected {self.count} zeros"
        wrong = next((index for index, number in enumerate(found) if number != 0), None)
        return None if wrong is None else f"{parameter} [{wrong}] is {found[wrong]:.6g}, expected zeros"


@dataclass(frozen=True)
class Axes(Expected):
    """Axes of what the op takes, counted from either end."""

    axes: tuple[int, ...]

    def difference(self, op: Op, parameter: str) -> str | None:
        rank = len((op.value("x") or op.need("values")).shape)
        found = op.whole(parameter)
        if found is not None and rank and [axis % rank for axis in found] == [axis % rank for axis in self.axes]:
            return None
        return f"{parameter} is {described(op.value(parameter), found)}, expected {list(self.axes)}"


@dataclass(frozen=True)
class Shape(Expected):
    """The lengths of a result; one of them may be stored as -1."""

    lengths: tuple[int, ...]

    def difference(self, op: Op, parameter: str) -> str | None:
        found = op.whole(parameter)
        if found is not None and len(found) == len(self.lengths) and found.count(-1) <= 1:
            if all(held in (-1, length) for held, length in zip(found, self.lengths, strict=True)):
                return None
        return f"{parameter} is {described(op.value(parameter), found)}, expected {list(self.lengths)}"


@dataclass(frozen=True)
class Window(Expected):
    """From where to where a slice goes on each axis, and which axes it drops; None: the whole axis."""

    ranges: tuple[tuple[int, int] | None, ...]
    squeezed: tuple[int, ...] = ()
    covers = ("end", "begin_mask", "end_mask", "stride", "squeeze_mask")

    def difference(self, op: Op, parameter: str) -> str | None:
        lengths = op.need("x").shape
        if len(lengths) != len(self.ranges):
            return f"x has {len(lengths)} axes, expected {len(self.ranges)}"
        wanted = [(0, length) if part is None else part for part, length in zip(self.ranges, lengths, strict=True)]
        found = self._ranges(op, lengths)
        dropped = [axis for axis, flag in enumerate(_flags(op, "squeeze_mask", len(lengths))) if flag]
        if found == wanted and dropped == list(self.squeezed):
            return None
        return f"takes {_spans(found, dropped)}, expected {_spans(wanted, self.squeezed)}"

    def _ranges(self, op: Op, lengths: Sequence[int]) -> list[tuple[int, int]] | None:
        begin, end, stride = op.whole("begin"), op.whole("end"), op.whole("stride")
        rank = len(lengths)
        if begin is None or end is None or not len(begin) == len(end) == rank or set(stride or (1,)) != {1}:
            return None
        first, last = _flags(op, "begin_mask", rank), _flags(op, "end_mask", rank)
        return [
            (0 if first[axis] else begin[axis] % max(1, length), length if last[axis] else end[axis])
            for axis, length in enumerate(lengths)
        ]


def expected(argument: Any) -> Expected:
    """Returns plain strings and numbers as what they stand for; an Expected as it is."""
    if isinstance(argument, Expected):
        return argument
    return Text(argument) if isinstance(argument, str) else Numbers(argument)


def stored_as(numbers: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns numbers in the type in which a constant stores them, rounded as coremltools rounds."""
    with np.errstate(over="ignore"):
        stored = numbers.astype(dtype)
    if dtype == np.float16:
        lost = (numbers != 0) & (np.abs(stored) <= SMALLEST_HALF)
        stored = np.where(lost, np.sign(numbers) * SMALLEST_HALF, stored).astype(dtype)
    return stored


def described(value: Value | None, found: Sequence[int] | None = None) -> str:
    """Returns what an argument is, for a message."""
    if value is None:
        return "nothing"
    if found is not None:
        return str(list(found[:SHOWN]))
    return f"{value.name or 'a constant'} of type {value.type}"


def listed(numbers: NDArray[Any]) -> str:
    """Returns numbers for a message: the first few, five digits."""
    flat = numbers.reshape(-1)
    words = [str(each) if each.dtype.kind in "bi" else f"{each:.5g}" for each in flat[:SHOWN]]
    more = f", … of {flat.size}" if flat.size > SHOWN else ""
    return words[0] if flat.size == 1 else f"[{', '.join(words)}{more}]"


def _flags(op: Op, parameter: str, count: int) -> list[bool]:
    found = op.numbers(parameter)
    return [bool(flag) for flag in found] if found is not None and len(found) == count else [False] * count


def _spans(ranges: Sequence[tuple[int, int]] | None, dropped: Sequence[int]) -> str:
    if ranges is None:
        return "what is no plain slice"
    spans = ", ".join(f"{first}:{last}" for first, last in ranges)
    return f"[{spans}]" + (f" without axis {', '.join(map(str, dropped))}" if dropped else "")
