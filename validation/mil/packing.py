"""Which ops of a function take their constants in a layout of their own (`registry.Packing`), decided when planned.

A layout is a copy in memory, unlike a mapped file, so the layouts of one function may fill half the memory that this
process may use at most; what comes after stays mapped. Functions that lay out the same constants share them. Runs on
Linux and macOS: `mmap.madvise` is Unix's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from validation.mil.binding import PlannedConstant, converted, taking
from validation.mil.compressed import constant_argument
from validation.mil.dtypes import BY_NAME
from validation.mil.package import Package
from validation.mil.registry import Op, Parameter, Tensor
from validation.mil.values import TensorType

_HALF = BY_NAME["fp16"]


@dataclass(frozen=True)
class Layout:
    """What an op's layout could be made of: its constant tensors by parameter name, for an argument of type `x`."""

    x: TensorType
    tensors: dict[str, PlannedConstant]

    @property
    def bytes(self) -> int:
        """How much memory the layout takes."""
        return 2 * sum(int(prod(constant.type.shape)) for constant in self.tensors.values())


@dataclass
class Packer:
    """Decides op by op, and counts the bytes it has granted."""

    package: Package
    limit: int
    granted: int = 0

    def suited(
        self, op: Op, operation: Any, constants: dict[str, PlannedConstant], types: dict[str, Any]
    ) -> Layout | None:
        """The op's layout as its constants give it; None where they give none (see `registry.Packing`)."""
        packing = op.packing
        if packing is None:
            return None
        first, *others = op.parameters
        x = _computed_type(operation, first.name, types)
        found = {item: constant_argument(operation, item.name, constants, self.package) for item in others}
        taken = {item: constant for item, constant in found.items() if constant is not None}
        if any(item.required and item not in taken for item in others):
            return None  # the plain op names what is missing
        if x is None or {first.name, *(item.name for item in taken)} != set(operation.inputs):
            return None
        tensors = {item.name: constant for item, constant in taken.items() if item.annotation is Tensor}
        types = {name: constant.type for name, constant in tensors.items()}
        if not all(_is_half(kind) for kind in (x, *types.values())):
            return None
        values = {item.name: _value(constant, item) for item, constant in taken.items() if item.name not in tensors}
        with taking(*taken.values()):
            return Layout(x, tensors) if packing.suits(x, **types, **values) else None

    def grants(self, op: Op, layout: Layout) -> bool:
        """Whether the layout is to be made; what it takes is then granted."""
        if op.packing is None or self.granted + layout.bytes > self.limit or not op.packing.pays(layout.x):
            return False
        self.granted += layout.bytes
        return True


def _computed_type(operation: Any, name: str, types: dict[str, Any]) -> TensorType | None:
    """The type of the computed tensor that the input is bound to; None where it is anything else."""
    bindings: Any = operation.inputs[name].arguments if name in operation.inputs else ()
    kind = types.get(bindings[0].name) if len(bindings) == 1 else None
    return kind if isinstance(kind, TensorType) else None


def _is_half(kind: Any) -> bool:
    return isinstance(kind, TensorType) and kind.dtype is _HALF


def _value(constant: PlannedConstant, parameter: Parameter) -> Any:
    with taking(constant):
        return converted(constant.load(), parameter.annotation)
