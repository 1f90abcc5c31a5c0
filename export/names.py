"""Names inside a program: a value is called after its op, with a number; a weight keeps its parameter's name.

coremltools draws names from the trace and, walking Python sets, from the hash seed of the process. Named anew, the same
program is the same bytes, and a layer that was copied (`export.repeat`) has names like any other. Inputs, outputs and
state keep the names of the contract.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any


def rename(function: Any, kept: Container[str] = ()) -> None:
    """Renames every op of a MIL function and its results, but for inputs, outputs and names in `kept`."""
    for block in function.block_specializations.values():
        contract = {feature.name for feature in function.inputs} | set(block.outputs)
        names: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for op in block.operations:
            titles = [f"{op.type}_{counts[op.type] + at}" for at in range(max(1, len(op.outputs)))]
            counts[op.type] += len(titles)
            for output, title in zip(op.outputs, titles, strict=False):
                if output.name not in contract and output.name not in kept:
                    names[output.name] = title
            _rename(op, names, titles[0])


def _rename(op: Any, names: dict[str, str], title: str) -> None:
    for output in op.outputs:
        output.name = names.get(output.name, output.name)
    for value in op.inputs.values():
        for argument in value.arguments:
            if argument.WhichOneof("binding") == "name":
                argument.name = names.get(argument.name, argument.name)
    if "name" in op.attributes:
        title = op.outputs[0].name if op.outputs else title
        op.attributes["name"].immediateValue.tensor.strings.values[:] = [title]
