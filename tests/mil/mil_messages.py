"""ML programs written message by message: one op and its arguments, without coremltools' builder.

A conversion costs a tenth of a second, these messages a tenth of a millisecond, so property tests can draw programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from validation.mil import MILModel
from validation.mil.dtypes import BY_NAME, DTYPES
from validation.mil.schema import model_message

OPSET = "CoreML8"
_NAMES = {dtype.numpy: dtype.name for dtype in reversed(DTYPES)}


def _declare(message: Any, dtype: str, shape: Sequence[int | None]) -> None:
    tensor = message.tensorType
    tensor.dataType = 2 if dtype == "string" else BY_NAME[dtype].proto
    tensor.rank = len(shape)
    for length in shape:
        dimension = tensor.dimensions.add()
        if length is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = length


def _fill(message: Any, value: Any) -> None:
    """Write a Python or numpy value into a MILSpec.Value."""
    if isinstance(value, str):
        _declare(message.type, "string", ())
        message.immediateValue.tensor.strings.values.append(value)
        return
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    _declare(message.type, _NAMES[array.dtype], array.shape)
    tensor = message.immediateValue.tensor
    if array.dtype == np.bool_:
        tensor.bools.values.extend(array.reshape(-1).tolist())
    elif array.dtype == np.float32:
        tensor.floats.values.extend(array.reshape(-1).tolist())
    elif array.dtype == np.int32:
        tensor.ints.values.extend(array.reshape(-1).tolist())
    else:
        tensor.bytes.values = array.tobytes()


def add_op(block: Any, kind: str, results: Mapping[str, str], arguments: Mapping[str, Any]) -> None:
    """Append an op: results name -> declared type; arguments are names (prefixed @), values, or lists of either."""
    operation = block.operations.add(type=kind)
    _fill(operation.attributes["name"], next(iter(results), kind))
    for parameter, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        for item in values:
            binding = operation.inputs[parameter].arguments.add()
            if isinstance(item, str) and item.startswith("@"):
                binding.name = item[1:]
            else:
                _fill(binding.value, item)
    for name, dtype in results.items():
        output = operation.outputs.add(name=name)
        _declare(output.type, dtype, (None,))


def empty_program(inputs: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """A spec and its main block, with the inputs declared like the given arrays."""
    spec = model_message()
    spec.specificationVersion = 9
    function = spec.mlProgram.functions["main"]
    function.opset = OPSET
    for name, array in inputs.items():
        item = function.inputs.add(name=name)
        _declare(item.type, _NAMES[array.dtype], array.shape)
        feature = spec.description.input.add(name=name)
        feature.type.multiArrayType.SetInParent()
    return spec, function.block_specializations[OPSET]


def give(spec: Any, block: Any, names: Sequence[str]) -> None:
    """Declare the program's outputs."""
    for name in names:
        block.outputs.append(name)
        spec.description.output.add(name=name).type.multiArrayType.SetInParent()


def one_op(
    kind: str,
    arguments: Mapping[str, Any],
    results: str | Sequence[str] | None = None,
    precision: str = "fp32",
) -> Any:
    """Run one op. Arrays given as a tuple (array,) are inputs of the program, everything else is constant.

    results: declared type of each result (default: that of the first input). One result comes alone, several as a list.
    """
    inputs: dict[str, np.ndarray] = {}
    bound: dict[str, Any] = {}
    for parameter, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        names = []
        for item in values:
            if isinstance(item, tuple):
                name = f"in{len(inputs)}"
                inputs[name] = np.asarray(item[0])
                names.append("@" + name)
            else:
                names.append(item)
        bound[parameter] = names
    if results is None:
        results = _NAMES[next(iter(inputs.values())).dtype]
    declared = [results] if isinstance(results, str) else list(results)
    spec, block = empty_program(inputs)
    outputs = {f"out{index}": dtype for index, dtype in enumerate(declared)}
    add_op(block, kind, outputs, bound)
    give(spec, block, list(outputs))
    answers = list(MILModel(spec, precision=precision).predict(inputs).values())
    return answers if not isinstance(results, str) else answers[0]
