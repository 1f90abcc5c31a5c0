"""The ops of a package as `Work`, counted from the program itself as `validation.lint.cost` counts them.

Ops on float32 are left out: they are what Core ML does around the engine for an image input.
It knows no models: any program can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from validation.fit.work import DENSE, Weights, Work, gathered
from validation.lint.cost import GATHERS, VIEWS, cost_of
from validation.program.contents import Function, Op, Value

SLICES = frozenset({"slice_by_index", "slice_by_size"})
FLOAT32 = "fp32"
PALETTE = "constexpr_lut_to_dense"


def works_of(function: Function) -> list[Work]:
    """Returns the ops of a function, those that are equal as one; PackageError where an op contradicts itself."""
    return gathered(_works(function))


def _works(function: Function) -> Iterator[Work]:
    for op in function.ops:
        if op.type not in VIEWS and not _is_float32(op):
            yield _work(op, function)


def _is_float32(op: Op) -> bool:
    values = (*op.outputs, *(value for value in op.values if not value.fixed))
    return any(value.dtype is not None and value.dtype.name == FLOAT32 for value in values)


def _work(op: Op, function: Function) -> Work:
    cost = cost_of(op)
    weights = tuple(map(_weights, _constants(op)))
    if op.type == "slice_update":
        return Work(op.type, cost.flops, state=cost.written, tensors=(cost.read,))
    if op.type in SLICES and _reads_state(op, function):
        return Work(op.type, cost.flops, state=cost.read, tensors=(cost.written,))
    if op.type in SLICES | GATHERS:
        return Work(op.type, cost.flops, tensors=(cost.read, cost.written))
    read = {id(value): value.size for value in op.values if not value.fixed}
    return Work(op.type, cost.flops, weights, tensors=(*read.values(), *(value.size for value in op.outputs)))


def _constants(op: Op) -> list[Value]:
    """Constants of floating point, each once."""
    return list({id(v): v for v in op.values if v.fixed and v.dtype is not None and v.dtype.is_float}.values())


def _weights(value: Value) -> Weights:
    return Weights(value.stored, value.size, _form(value))


def _form(value: Value) -> str:
    """How a constant is stored, in the words of `export.compression.schemes.Kind`."""
    maker = value.made_by
    if maker is None:
        return DENSE
    if maker.type == PALETTE:
        return "palette"
    scale = maker.value("scale")
    blocks = scale.shape[1:] if scale is not None else ()
    return "block" if any(count > 1 for count in blocks) else "channel"


def _reads_state(op: Op, function: Function) -> bool:
    value = op.value("x")
    maker = function.makers.get(value.name) if value is not None else None
    return maker is not None and maker.type == "read_state"
