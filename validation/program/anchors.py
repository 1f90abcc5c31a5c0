"""Where in a program a weight is used: the fixed points from which its values are told apart.

A weight's constant keeps its parameter's name through conversion (`export.names`), whatever ops stand around it; what
goes into the op that reads it, what comes out, and the sum that follows are therefore found without a pattern of ops.
"""

from __future__ import annotations

from export.convert import constant_name
from fastvlm.errors import PackageError
from validation.program.contents import Function, Op, Value


class Unmatched(PackageError):
    """A program lacks what the reference has: an op for a weight, or the sum behind it."""


class Anchors:
    """The ops of one function, by the weight that they read."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.order = {id(op): index for index, op in enumerate(function.ops)}

    def weighted(self, parameter: str, leaf: str = "weight") -> Op:
        """Returns the op that reads a graph's parameter (`layers.0.mlp.up_proj`); Unmatched where not exactly one."""
        name = constant_name(f"{parameter}.{leaf}")
        readers = self.function.readers.get(name, ())
        if len(readers) != 1:
            raise Unmatched(f"{self.function.name}: {len(readers)} ops read {name}, expected 1")
        return readers[0]

    def taken(self, parameter: str) -> Value:
        """Returns what goes into the op of a weight."""
        return self.weighted(parameter).need("x")

    def given(self, parameter: str) -> Value:
        """Returns what comes out of the op of a weight."""
        return self.weighted(parameter).result

    def added(self, parameter: str) -> Value:
        """Returns the sum that the result of a weight's op goes into, perhaps multiplied by a constant on the way."""
        value = self.given(parameter)
        while True:
            readers = self.function.readers.get(value.name, ())
            if len(readers) != 1 or readers[0].type not in ("add", "mul"):
                found = ", ".join(op.type for op in readers) or "nothing"
                raise Unmatched(f"{self.function.name}: the result of {parameter} goes into {found}, expected one sum")
            value = readers[0].result
            if readers[0].type == "add":
                return value
