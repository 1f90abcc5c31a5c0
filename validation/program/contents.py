"""A program as its readers see it: functions, ops, values with their types, and what is stored of each constant.

These are facts alone, read by `validation.program.reading` from the package that ships; nothing here judges them. An
axis whose length is known only at run time counts as 1 wherever something is multiplied; `Value.dynamic` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastvlm.errors import PackageError
from validation.mil.dtypes import DType
from validation.mil.features import Feature
from validation.mil.values import Constant, ListType, OtherType, StateType, TensorType

MOST_NUMBERS = 1 << 20  # that an argument holds which a rule reads: strides, axes, offsets of channels
Type = TensorType | ListType | StateType | OtherType


@dataclass(frozen=True, eq=False)
class Value:
    """What an op takes or gives.

    origin: "input" | "state" | "constant" | "computed". constant: where its numbers are, of one that is stored as it
    is. made_by: the constexpr_* op whose result it is, of one that is stored in fewer bits.
    """

    name: str
    type: Type
    origin: str
    constant: Constant | None = None
    made_by: Op | None = None

    @property
    def tensor(self) -> TensorType | None:
        """Its tensor type, the state's where it is one; None for lists, tuples and dictionaries."""
        if isinstance(self.type, StateType):
            return self.type.tensor
        return self.type if isinstance(self.type, TensorType) else None

    @property
    def dtype(self) -> DType | None:
        """Its element type; None for strings and for what is no tensor."""
        return self.tensor.dtype if self.tensor else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths, unknown ones as 1."""
        return tuple(1 if length is None else length for length in self.tensor.shape) if self.tensor else ()

    @property
    def dynamic(self) -> bool:
        """Whether some length is known only at run time."""
        return self.tensor is not None and None in self.tensor.shape

    @property
    def fixed(self) -> bool:
        """Whether it is a constant of the program."""
        return self.origin == "constant"

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape) if self.tensor else 0

    @property
    def bits(self) -> int:
        """Bits of one element as it is computed with: 16 for a weight that is stored in 4."""
        return self.dtype.bits if self.dtype else 0

    @property
    def size(self) -> int:
        """Bytes as it is computed with."""
        return (self.elements * self.bits + 7) // 8

    @property
    def stored(self) -> int:
        """Bytes as it lies in the package: codes and scales of a compressed weight, each once."""
        seen: set[int] = set()
        total, waiting = 0, [self]
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if value.made_by is None:
                total += value.size
            else:
                waiting += value.made_by.values
        return total


@dataclass(frozen=True, eq=False)
class Op:
    """One operation. `inside` names the control flow op around it, None where there is none; `where` its position."""

    type: str
    name: str
    where: str
    inputs: Mapping[str, tuple[Value, ...]]
    outputs: tuple[Value, ...]
    inside: str | None = None

    @property
    def title(self) -> str:
        """How a message names it."""
        return f"{self.type} {self.name!r} at {self.where}"

    @property
    def top_place(self) -> int:
        """Its position in its function's block, or that of the control flow op around it; constants count."""
        return int(self.where.rpartition(":")[2].partition(".")[0])

    @property
    def values(self) -> tuple[Value, ...]:
        """All that it takes, in the order of the program."""
        return tuple(value for values in self.inputs.values() for value in values)

    @property
    def result(self) -> Value:
        """Its first result; PackageError where it gives none."""
        if not self.outputs:
            raise PackageError(f"{self.title} gives no result; the program is damaged")
        return self.outputs[0]

    def value(self, parameter: str) -> Value | None:
        """The first value bound to a parameter, None where nothing is."""
        bound = self.inputs.get(parameter, ())
        return bound[0] if bound else None

    def need(self, parameter: str) -> Value:
        """The value bound to a parameter that the op cannot be without; PackageError where nothing is."""
        found = self.value(parameter)
        if found is None:
            raise PackageError(f"{self.title} lacks its parameter {parameter}; the program is damaged")
        return found

    def numbers(self, parameter: str) -> tuple[int | float, ...] | None:
        """The numbers of a constant argument, in order; None where it is missing, computed, or not numbers."""
        array = self._array(parameter)
        return None if array is None else tuple(array.reshape(-1).tolist())

    def text(self, parameter: str) -> str | None:
        """A constant string argument; None where it is missing, computed, or no string."""
        loaded = self._load(parameter)
        return loaded if isinstance(loaded, str) else None

    def whole(self, parameter: str) -> tuple[int, ...] | None:
        """The whole numbers of a constant argument; None as in `numbers`, PackageError for a fraction."""
        found = self.numbers(parameter)
        if found is None:
            return None
        if any(number != int(number) if math.isfinite(number) else True for number in found):
            raise PackageError(f"{self.title}: {parameter} is {found[:4]}, expected whole numbers; it is damaged")
        return tuple(int(number) for number in found)

    def flag(self, parameter: str, default: bool = False) -> bool:
        """A constant boolean argument, or its default."""
        found = self.numbers(parameter)
        return bool(found[0]) if found else default

    def _array(self, parameter: str) -> np.ndarray | None:
        loaded = self._load(parameter)
        return loaded if isinstance(loaded, np.ndarray) and loaded.dtype.kind in "fiub" else None

    def _load(self, parameter: str) -> Any:
        value = self.value(parameter)
        if value is None or value.constant is None:
            return None
        if value.elements > MOST_NUMBERS:
            raise PackageError(f"{self.title}: {parameter} has {value.elements} elements; the program is damaged")
        return value.constant.load()


@dataclass(frozen=True, eq=False)
class Function:
    """One function of a program: its ops in order, those inside control flow right behind it.

    readers: the ops that read a value, by its name; makers: the op that gives it. Names are unique within a function.
    features: its inputs as the package describes them (image, flexible shape), by name; results: what it returns.
    """

    name: str
    opset: str
    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    results: tuple[Value, ...]
    features: Mapping[str, Feature]
    readers: Mapping[str, tuple[Op, ...]]
    makers: Mapping[str, Op]

    @property
    def states(self) -> tuple[Value, ...]:
        """Its states."""
        return tuple(value for value in self.inputs if isinstance(value.type, StateType))

    def returns(self, value: Value) -> bool:
        """Whether a value is handed out."""
        return any(value.name == result.name for result in self.results)


@dataclass(frozen=True, eq=False)
class Program:
    """One package: its functions, the system that it asks for, and the bytes of its files.

    version: specification version of Model.proto. program_bytes, weight_bytes: of the model file and the weight files.
    """

    name: str
    version: int
    functions: tuple[Function, ...]
    program_bytes: int
    weight_bytes: int
    default: str = field(default="main")
