"""Which ops of a function take their constants in a layout of their own (`registry.Packing`), decided when planned.

A layout is a copy in memory, unlike a mapped file, so the layouts of one function may fill half the memory that this
process may use at most; what comes after stays mapped. Functions that lay out the same constants share them. Runs on
Linux and macOS: `os.sysconf` and `mmap.madvise` are Unix's. A container's memory limit is a control group's (Linux).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from validation.mil.binding import PlannedConstant
from validation.mil.compressed import constant_argument
from validation.mil.dtypes import BY_NAME, DType
from validation.mil.package import Package
from validation.mil.registry import Op, Packing
from validation.mil.values import TensorType

_HALF = BY_NAME["fp16"]
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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
    """Half of the machine's memory in bytes, or of the least limit that a control group sets this process."""
    return min([_machine_memory(), *_group_limits()]) // 2


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limits() -> Iterator[int]:
    """The memory limits of this process's control group and of those around it, both versions of the interface."""
    for line in _text(_OWN_GROUPS).splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = PurePosixPath(place.lstrip("/"))
        for group in (inner, *inner.parents):
            limit = _text(root / group / name).strip()
            if limit.isdecimal():  # "max": no limit
                yield int(limit)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no Linux, or a group that only the host sees
        return ""
