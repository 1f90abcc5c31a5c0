"""Which ops of a function take their constants in a layout of their own (`registry.Packing`), decided when planned.

A layout is a copy in memory, unlike a mapped file, so the layouts of one function may fill half the machine's memory at
most; what comes after stays mapped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

from validation.mil.binding import PlannedConstant
from validation.mil.compressed import constant_argument
from validation.mil.dtypes import BY_NAME, DType
from validation.mil.package import Package
from validation.mil.registry import Op, Packing
from validation.mil.values import TensorType

_HALF = BY_NAME["fp16"]


@dataclass
class Packer:
    """Decides op by op, and counts the bytes it has granted."""

    package: Package
    limit: int
    granted: int = 0

    def take(
        self, op: Op, operation: Any, constants: dict[str, PlannedConstant], types: dict[str, Any]
    ) -> dict[str, PlannedConstant] | None:
        """The constants to lay out, by parameter name; None where the op is to take them one by one as they are."""
        packing = op.packing
        if packing is None or self.limit == 0:
            return None
        first, *others = (parameter.name for parameter in op.parameters)
        if _computed_type(operation, first, types) is not _HALF:
            return None
        found = {name: constant_argument(operation, name, constants, self.package) for name in others}
        taken = {name: constant for name, constant in found.items() if constant is not None}
        if {first, *taken} != set(operation.inputs) or not _suit(packing, taken):
            return None
        size = sum(prod(constant.type.shape) for constant in taken.values()) * 2
        if self.granted + size > self.limit:
            return None
        self.granted += size
        return taken


def _computed_type(operation: Any, name: str, types: dict[str, Any]) -> DType | None:
    """The element type of the computed tensor that the input is bound to; None where it is anything else."""
    bindings: Any = operation.inputs[name].arguments if name in operation.inputs else ()
    kind = types.get(bindings[0].name) if len(bindings) == 1 else None
    return kind.dtype if isinstance(kind, TensorType) else None


def _suit(packing: Packing, taken: dict[str, PlannedConstant]) -> bool:
    types = {name: constant.type for name, constant in taken.items()}
    half = all(isinstance(kind, TensorType) and kind.dtype is _HALF for kind in types.values())
    return half and packing.suits(**types)


def half_of_memory() -> int:
    """Half of the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
