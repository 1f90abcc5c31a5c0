"""The constants of a package on disk as the MIL runtime computes them, compressed ones made dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.postcheck import operations
from validation.mil.compressed import constexpr_constants
from validation.mil.package import open_package
from validation.mil.values import decode_constant


@dataclass(frozen=True)
class Constant:
    """One constant: its name, the op that gives it, its values (fp16 where it is a weight)."""

    name: str
    op: str
    value: Any


def functions(package: Path) -> list[str]:
    """The functions of a package."""
    return sorted(open_package(package).program.functions)


def constants(package: Path, function: str) -> list[Constant]:
    """Every constant of a function, in order."""
    return list(_constants(package, function))


def compressed(package: Path, function: str) -> dict[str, Constant]:
    """The compressed ones, by name."""
    return {found.name: found for found in _constants(package, function) if found.op != "const"}


def op_counts(package: Path, function: str) -> Counter[str]:
    """How many ops there are of each type, constants not among them."""
    program = open_package(package).program
    found = Counter(op.type for op in operations(program.functions[function]))
    del found["const"]
    return found


def _constants(package: Path, function: str) -> Iterator[Constant]:
    opened = open_package(package)
    for op in operations(opened.program.functions[function]):
        name = op.outputs[0].name if op.outputs else ""
        if op.type == "const":
            yield Constant(name, op.type, decode_constant(op.attributes["val"], opened).load())
        elif op.type.startswith("constexpr_"):
            yield Constant(name, op.type, constexpr_constants(op, {}, opened, "fp16")[name].load())
