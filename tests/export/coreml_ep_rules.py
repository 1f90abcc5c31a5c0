"""Which nodes onnxruntime's CoreML provider documents that it takes, as ML programs, of a model with known shapes.

Ops are those of the table that the installed onnxruntime carries (coreml_supported_mlprogram_ops.md). What holds for
all of them is in the provider's source (core/providers/coreml/builders: helper.cc, impl/base_op_builder.cc/.h,
impl/cast_op_builder.cc), of releases up to 1.2x: shapes known, no axis beyond 16,384, at most five axes; float or
float16 in front; an op's version at most 20; no weight in external data; a Cast has an op before it. Releases since mid
2026 read external data (microsoft/onnxruntime#28062 for what goes into the package as it is, #29394 for the rest).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, shape_inference

TABLE = Path(onnxruntime.__file__).parent / "tools" / "mobile_helpers" / "coreml_supported_mlprogram_ops.md"
LARGEST_AXIS, MOST_AXES, NEWEST = 16_384, 5, 20
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
Type = tuple[int, tuple[int, ...]]  # dtype and shape, −1 where an axis is not known


def documented() -> set[str]:
    """The standard ops of the table."""
    return set(re.findall(r"^\|ai\.onnx:(\w+)\|", TABLE.read_text("utf-8"), re.MULTILINE))


def refused(model: ModelProto, kernels_outside: bool = False) -> dict[str, list[str]]:
    """Node -> why the provider would leave it to the CPU; nodes that it takes are not there.

    kernels_outside: whether convolutions may have their weights in external data, as releases since #28062 allow.
    """
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    weights = {each.name: each for each in inferred.graph.initializer}
    types = {each.name: (each.data_type, tuple(each.dims)) for each in weights.values()}
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types |= {each.name: _type(each) for each in values}
    external = {name for name, each in weights.items() if each.data_location == TensorProto.EXTERNAL}
    if kernels_outside:
        external -= {node.input[1] for node in inferred.graph.node if node.op_type == "Conv"}
    opset = next(each.version for each in inferred.opset_import if not each.domain)
    known = documented()
    inputs = {each.name for each in inferred.graph.input}
    found = {node.name: list(_reasons(node, types, external, inputs, known, opset)) for node in inferred.graph.node}
    return {name: reasons for name, reasons in found.items() if reasons}


def _type(value: ValueInfoProto) -> Type:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return tensor.elem_type, shape


def _reasons(
    node: NodeProto, types: dict[str, Type], external: set[str], inputs: set[str], known: set[str], opset: int
) -> Iterator[str]:
    if node.domain or node.op_type not in known:
        yield f"{node.domain or 'ai.onnx'}:{node.op_type} is not in the table"
        return
    if (version := onnx.defs.get_schema(node.op_type, opset).since_version) > NEWEST:
        yield f"{node.op_type} of opset {version}"
    if node.op_type == "Cast" and node.input[0] in inputs:
        yield "a Cast of an input"
    unknown = [name for name in node.input if name and name not in types]
    if unknown:
        yield f"no shape is known of {', '.join(unknown)}"
        return
    if types[node.input[0]][0] not in FLOATS:
        yield f"a first input of type {types[node.input[0]][0]}"
    for name in filter(None, node.input):
        if name in external:
            yield f"{name} lies outside the model"
        shape = types[name][1]
        if min(shape, default=1) < 1 or max(shape, default=1) > LARGEST_AXIS or len(shape) > MOST_AXES:
            yield f"{name} has shape {shape}"


def largest_axis(model: ModelProto) -> int:
    """The longest axis of any value or weight."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = [tuple(each.dims) for each in inferred.initializer]
    shapes += [_type(each)[1] for each in (*inferred.value_info, *inferred.input, *inferred.output)]
    assert all(prod(shape) > 0 for shape in shapes)
    return max(max(shape, default=1) for shape in shapes)
