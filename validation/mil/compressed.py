"""Compressed constants as the planner sees them: computed from other constants when they are first needed.

A constexpr_* op never runs with the program. iOS16 stores its arguments as attributes, iOS18 as inputs that may name
other constexpr ops; both become a tree that is evaluated once, on first use, and shared between the functions of a
package by what it was computed from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastvlm.errors import PackageError
from validation.mil.binding import PlannedConstant, converted
from validation.mil.package import Package
from validation.mil.registry import OPS
from validation.mil.values import Constant, TensorType, decode_constant, decode_type


@dataclass(frozen=True)
class _Evaluation:
    """One constexpr op: its function and its arguments, each a constant with the annotation of its parameter."""

    title: str
    function: Callable[..., Any]
    many: bool
    arguments: dict[str, tuple[PlannedConstant, Any]]

    @cached_property
    def key(self) -> Any:
        """What identifies the result within a package; None when nothing in it is stored in a weight file."""
        parts = [(name, constant.key) for name, (constant, _) in self.arguments.items()]
        if all(part is None for _, part in parts):
            return None
        inline = [
            str(constant.load()) if isinstance(constant, Constant) and constant.key is None else ""
            for constant, _ in self.arguments.values()
        ]
        return (self.function.__name__, tuple(parts), tuple(inline))

    def run(self) -> tuple[Any, ...]:
        values = {name: converted(constant.load(), kind) for name, (constant, kind) in self.arguments.items()}
        try:
            result = self.function(**values)
        except (ValueError, IndexError, TypeError) as error:
            raise PackageError(f"{self.title}: {error}; the program is damaged") from error
        return tuple(result) if self.many else (result,)


@dataclass(frozen=True)
class _Result:
    """One result of an evaluation, in its declared type (fp16 kept in float32 where nothing is rounded)."""

    type: TensorType
    evaluation: _Evaluation
    index: int
    target: np.dtype

    @property
    def key(self) -> Any:
        return None if self.evaluation.key is None else (self.evaluation.key, self.index, str(self.target))

    def load(self) -> Any:
        value = self.evaluation.run()[self.index]
        if tuple(value.shape) != self.type.shape:
            raise PackageError(f"{self.evaluation.title} gives shape {list(value.shape)}, declared is {self.type}")
        return np.asarray(value).astype(self.target, copy=False)

    def forget(self) -> None:
        """See `PlannedConstant`."""
        for constant, _ in self.evaluation.arguments.values():
            constant.forget()


def constant_argument(
    operation: Any, name: str, constants: dict[str, PlannedConstant], package: Package
) -> PlannedConstant | None:
    """The one constant that an operation's attribute or input of that name is bound to, None where it is not one."""
    if name in operation.attributes:
        return decode_constant(operation.attributes[name], package)
    if name not in operation.inputs or len(operation.inputs[name].arguments) != 1:
        return None
    binding = operation.inputs[name].arguments[0]
    if binding.WhichOneof("binding") == "value":
        return decode_constant(binding.value, package)
    return constants.get(binding.name)


def constexpr_constants(
    operation: Any, constants: dict[str, PlannedConstant], package: Package, precision: str
) -> dict[str, PlannedConstant]:
    """Name -> constant for every output of a constexpr_* operation; PackageError when it is malformed."""
    op = OPS[operation.type]
    title = f"{operation.type} {operation.outputs[0].name if operation.outputs else ''!r}"
    arguments = {}
    for parameter in op.parameters:
        found = constant_argument(operation, parameter.name, constants, package)
        if found is not None:
            arguments[parameter.name] = (found, parameter.annotation)
        elif parameter.required:
            raise PackageError(f"{title} has no constant {parameter.name}; the program is damaged")
    evaluation = _Evaluation(title, op.function, op.many, arguments)
    results: dict[str, PlannedConstant] = {}
    for index, output in enumerate(operation.outputs):
        kind = decode_type(output.type)
        if not isinstance(kind, TensorType) or kind.dtype is None:
            raise PackageError(f"{title} gives {kind}, expected a tensor; the program is damaged")
        half = kind.dtype.numpy == np.float16 and precision == "fp32"
        results[output.name] = _Result(kind, evaluation, index, np.dtype(np.float32) if half else kind.dtype.numpy)
    return results
