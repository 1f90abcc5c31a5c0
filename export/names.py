"""Numbered names inside a program, numbered again in order of appearance.

coremltools draws names such as `const_12` while it walks Python sets, so they change with the hash seed of the
process. Programs are otherwise the same; renumbering makes the same program the same bytes. Within one prefix the
numbers are only dealt anew, so no two names can meet. Inputs, outputs and state keep the names of the contract.
"""

from __future__ import annotations

import re
from typing import Any

NUMBERED = re.compile(r"([a-z_]+)_(\d+)")


def renumber(function: Any) -> None:
    """Renames, in one function of a MIL protobuf, every operation `prefix_<number>` by its place in the program."""
    for block in function.block_specializations.values():
        kept = {feature.name for feature in function.inputs} | set(block.outputs)
        names = _new_names([output.name for op in block.operations for output in op.outputs], kept)
        for op in block.operations:
            _rename(op, names)


def _new_names(names: list[str], kept: set[str]) -> dict[str, str]:
    counts: dict[str, int] = {}
    new: dict[str, str] = {}
    for name in names:
        match = NUMBERED.fullmatch(name)
        if match is None or name in kept:
            continue
        prefix = match[1]
        while (candidate := f"{prefix}_{counts.setdefault(prefix, 0)}") in kept:
            counts[prefix] += 1
        counts[prefix] += 1
        new[name] = candidate
    return new


def _rename(op: Any, names: dict[str, str]) -> None:
    for output in op.outputs:
        output.name = names.get(output.name, output.name)
    for value in op.inputs.values():
        for argument in value.arguments:
            if argument.WhichOneof("binding") == "name":
                argument.name = names.get(argument.name, argument.name)
    if "name" in op.attributes:
        strings = op.attributes["name"].immediateValue.tensor.strings.values
        strings[:] = [names.get(name, name) for name in strings]
