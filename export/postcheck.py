"""What a finished package must be, checked on its protobuf before anybody calls it exported.

A converter can put in a cast, fall back to float32, or rename an input without saying so; then a phone runs it on the
CPU, or not at all. All problems are listed at once; one of them is a defect of this tool or of an untested
coremltools, never of the checkpoint.
It knows the contract (`export.contract`), not what the numbers mean; parity is `validation`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from export.contract import SCALE, SYSTEMS, FunctionSpec, TensorSpec
from export.quiet import import_coremltools
from fastvlm.errors import PackageError

# The only float32 regions. An image input is float32 bytes, scaled by one `mul` and brought to fp16 by one `cast`; what
# is declared as float32 has one `cast`.
IMAGE_OPS = ("mul", "cast")
FLOAT32_OPS = ("cast",)
# sqrt, pow: a norm that was not fused squares in fp16 (`export.norms`). tile: keys repeated per query head.
FORBIDDEN = {"tile", "sqrt", "pow", "while_loop", "cond", "scatter", "scatter_nd"}
# The safe norms are not fused, and take roots of what was raised above 0; the root of anything else is a norm's that
# should have been.
GUARDED = {"rsqrt": "maximum"}
RANK_CAP = 5


def check_package(proto: Any, specs: Sequence[FunctionSpec], default: str) -> None:
    """Raises PackageError that lists everything in `proto` that the contract does not allow."""
    problems = _function_problems(proto, specs, default)
    if not problems:
        for spec in specs:
            problems += [f"{spec.name}: {problem}" for problem in _problems(proto, spec)]
    if problems:
        shown = "; ".join(problems[:20])
        raise PackageError(
            f"the converted package breaks its contract in {len(problems)} places: {shown}; "
            "install the coremltools and torch of constraints.txt, and report it if it stays"
        )


def operations(function: Any) -> Iterator[Any]:
    """Every operation of a function, in order."""
    for block in function.block_specializations.values():
        yield from block.operations


def _function_problems(proto: Any, specs: Sequence[FunctionSpec], default: str) -> list[str]:
    wanted = [spec.name for spec in specs]
    alone = any(spec.alone for spec in specs)
    described = [function.name for function in proto.description.functions]
    problems = []
    for spec in specs:
        if proto.specificationVersion != SYSTEMS[spec.system]:
            version = proto.specificationVersion
            problems.append(f"specification version {version}, expected {SYSTEMS[spec.system]} ({spec.system})")
    if described != ([] if alone else wanted) or sorted(proto.mlProgram.functions) != sorted(wanted):
        problems.append(f"functions {described} / {sorted(proto.mlProgram.functions)}, expected {wanted}")
    default = "" if alone else default
    if proto.description.defaultFunctionName != default:
        problems.append(f"default function {proto.description.defaultFunctionName!r}, expected {default!r}")
    return problems


def _problems(proto: Any, spec: FunctionSpec) -> list[str]:
    functions = proto.description.functions
    description = proto.description if spec.alone else next(f for f in functions if f.name == spec.name)
    problems = _feature_problems("input", description.input, spec.inputs)
    problems += _feature_problems("output", description.output, spec.outputs)
    problems += _feature_problems("state", description.state, (spec.state,) if spec.state else ())
    return problems + _op_problems(proto.mlProgram.functions[spec.name], spec)


def _feature_problems(role: str, features: Any, specs: Sequence[TensorSpec]) -> list[str]:
    found, wanted = [feature.name for feature in features], [spec.name for spec in specs]
    if found != wanted:
        return [f"{role}s {found}, expected {wanted}"]
    declared = [(spec, _declared(feature.type)) for feature, spec in zip(features, specs, strict=True)]
    return [
        f"{role} {spec.name} is {kind} {list(shape)}, expected {_expected_kind(spec)} {list(spec.shape)}"
        for spec, (kind, shape) in declared
        if (kind, shape) != (_expected_kind(spec), spec.shape)
    ]


def _expected_kind(spec: TensorSpec) -> str:
    return "RGB image" if spec.kind == "image" else spec.dtype


def _declared(kind: Any) -> tuple[str, tuple[int, ...]]:
    """Returns (dtype or "RGB image", shape) of a feature type."""
    proto = import_coremltools().proto.FeatureTypes_pb2
    which = kind.WhichOneof("Type")
    if which == "imageType":
        image = kind.imageType
        rgb = image.colorSpace == proto.ImageFeatureType.RGB
        return ("RGB image" if rgb else "other image"), (1, 3, image.height, image.width)
    array = kind.stateType.arrayType if which == "stateType" else kind.multiArrayType
    name: str = proto.ArrayFeatureType.ArrayDataType.Name(array.dataType)
    known = {"FLOAT16": "float16", "FLOAT32": "float32", "INT32": "int32"}
    return known.get(name, name.lower()), tuple(array.shape)


def _op_problems(function: Any, spec: FunctionSpec) -> list[str]:
    ends = (*spec.inputs, *spec.outputs)
    allowed = Counter(kind for tensor in ends for kind in _edge_ops(tensor))
    problems = []
    made_by = {output.name: op.type for op in operations(function) for output in op.outputs}
    for op in operations(function):
        if op.type in FORBIDDEN:
            problems.append(f"op {op.type} ({_name(op)})")
        guard = GUARDED.get(op.type)
        if guard and guard not in {made_by.get(name) for name in _arguments(op)}:
            problems.append(f"op {op.type} ({_name(op)}) of what no {guard} made")
        # a scalar constant in float32 is harmless by itself: the op that reads it tells
        float32 = op.type != "const" and any(_is_float32(output.type) for output in op.outputs)
        if float32 or op.type == "cast":
            allowed[op.type] -= 1
            if allowed[op.type] < 0:
                problems.append(f"{'float32 ' if float32 else ''}op {op.type} ({_name(op)})")
        problems += [
            f"{op.type} ({_name(op)}) is {wrong}" for output in op.outputs if (wrong := _shape_problem(output.type))
        ]
    return problems + [
        problem
        for tensor in spec.inputs
        if (way := _edge_ops(tensor))
        for problem in _way_problems(function, tensor.name, (*way, "conv"))
    ]


def _edge_ops(tensor: TensorSpec) -> tuple[str, ...]:
    """The ops that a function may have around fp16 for one input or output."""
    if tensor.kind == "image":
        return IMAGE_OPS
    return FLOAT32_OPS if tensor.dtype == "float32" else ()


def _way_problems(function: Any, pixels: str, way: Sequence[str]) -> list[str]:
    """What pixels meet before the first convolution but for `way`: of an image a mul by SCALE, then a cast; no bias."""
    rule = "scale 1/255, bias 0" if "mul" in way else "neither scale nor bias"
    ops = list(operations(function))
    scales = {op.outputs[0].name: _scalar(op) for op in ops if op.type == "const"}
    problems: list[str] = []
    name = pixels
    for wanted in way:
        readers = [op for op in ops if name in _arguments(op)]
        kinds = [op.type for op in readers]
        if kinds != [wanted]:
            return [*problems, f"{name} is read by {kinds}, expected one {wanted}: {rule}"]
        if wanted == "mul":
            found = [scales.get(other) for other in _arguments(readers[0]) if other != pixels]
            if found != [np.float32(SCALE)]:
                problems.append(f"{pixels} is scaled by {found}, expected {np.float32(SCALE)} (1/255)")
        name = _name(readers[0])
    return problems


def _arguments(op: Any) -> list[str]:
    """The names that an operation reads."""
    return [binding.name for value in op.inputs.values() for binding in value.arguments if binding.name]


def _scalar(const: Any) -> np.float32 | None:
    """The value of a float32 constant of one number, None for any other."""
    values = const.attributes["val"].immediateValue.tensor.floats.values
    return np.float32(values[0]) if len(values) == 1 else None


def _is_float32(kind: Any) -> bool:
    data = import_coremltools().proto.MIL_pb2.DataType
    return bool(kind.WhichOneof("type") == "tensorType" and kind.tensorType.dataType == data.FLOAT32)


def _shape_problem(kind: Any) -> str | None:
    if kind.WhichOneof("type") != "tensorType":
        return None
    if kind.tensorType.rank > RANK_CAP:
        return f"of rank {kind.tensorType.rank}, expected at most {RANK_CAP}"
    dynamic = any(dimension.WhichOneof("dimension") != "constant" for dimension in kind.tensorType.dimensions)
    return "of a dynamic shape, expected a static one" if dynamic else None


def _name(op: Any) -> str:
    return op.outputs[0].name if op.outputs else "?"
