"""Faults planted into the files of a package: one number of a weight file, one argument of one op.

They are written as an export would have written them, so that nothing but the fault is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from validation.mil.package import parse_spec

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
FP16, FP32, INT32, BOOL, STRING = 10, 11, 23, 1, 2  # MIL.proto's data types
Edit = Callable[[np.ndarray], None]


@contextmanager
def program(package: Path) -> Iterator[Any]:
    """The Model message of a package, written back at the end of the block."""
    spec = parse_spec(package / MODEL)
    yield spec
    (package / MODEL).write_bytes(spec.SerializeToString(deterministic=True))


@contextmanager
def manifest(build: Path) -> Iterator[dict[str, Any]]:
    """The manifest of a build, written back at the end of the block."""
    path = build / "manifest.json"
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def operations(spec: Any, function: str) -> Any:
    """The operations of a function, to be edited in place."""
    held = spec.mlProgram.functions[function]
    return held.block_specializations[held.opset].operations


def find(spec: Any, function: str, kind: str, number: int = 0, reads: str = "") -> Any:
    """Op `number` of a type, of those that read the constant `reads` where one is named."""
    found = [op for op in operations(spec, function) if op.type == kind and (not reads or reads in arguments(op))]
    return found[number]


def arguments(op: Any) -> list[str]:
    """The names that an op reads."""
    return [binding.name for argument in op.inputs.values() for binding in argument.arguments if binding.name]


def constant(spec: Any, function: str, name: str) -> Any:
    """The op that gives a constant."""
    return next(op for op in operations(spec, function) if any(output.name == name for output in op.outputs))


def set_argument(spec: Any, function: str, op: Any, parameter: str, numbers: Any) -> None:
    """Gives one op another constant argument of the same type; other ops that shared the old one keep it."""
    binding = op.inputs[parameter].arguments[0]
    value = constant(spec, function, binding.name).attributes["val"]
    binding.ClearField("name")
    binding.value.CopyFrom(value)
    tensor = binding.value.immediateValue.tensor
    kind = value.type.tensorType.dataType
    if kind == FP16:
        tensor.bytes.values = np.asarray(numbers, np.float16).tobytes()
        return
    field = {FP32: tensor.floats, INT32: tensor.ints, BOOL: tensor.bools, STRING: tensor.strings}[kind]
    field.values[:] = numbers if isinstance(numbers, list) else [numbers]


def edit_constant(package: Path, function: str, name: str, edit: Edit, parameter: str = "val") -> None:
    """Changes stored numbers in place, all of their bits: uint16 of fp16 in the constant's shape, else uint8 (bytes,).

    `parameter` names the input of a constexpr op.
    """
    op = constant(parse_spec(package / MODEL), function, name)
    value = op.attributes["val"] if parameter == "val" else op.inputs[parameter].arguments[0].value
    edit_blob(package, value, edit)


def edit_blob(package: Path, value: Any, edit: Edit) -> None:
    """`edit_constant` of one stored value."""
    numbers = np.memmap(package / WEIGHTS, np.uint8, "r+")
    at = value.blobFileValue.offset
    size, start = (int(each) for each in numbers[at + 8 : at + 24].view(np.uint64))
    raw = numbers[start : start + size]
    kind = value.type.tensorType
    if kind.dataType == FP16:
        raw = raw.view(np.uint16).reshape([each.constant.size for each in kind.dimensions])
    edit(raw)
    numbers.flush()
