"""What an op costs: floating-point operations and bytes, from its types alone.

Products are exact: a multiplication and an addition are two operations, a bias one more for each result. Everything
else is counted by element: one for elementwise ops whatever the function (an exponential is one), one for each element
that a reduction reads, five for softmax (largest, subtract, exponential, sum, divide), five for the statistics and the
scaling of a norm, one each for gain and bias. Whole numbers are no floating-point operations and count nothing.

Bytes are those that the op moves if nothing is fused: constants of floating point as they are stored (a 4-bit code is
half a byte), activations as they are declared; axes, strides and other whole numbers are part of the program. Ops that
only give a tensor another shape move nothing, an update of a slice moves the slice, a gather what it fetches. An engine
that keeps a value on the chip moves less; a share of bytes is a weight to compare ops by, not a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastvlm.errors import PackageError
from validation.program.contents import Op, Value

GRANULE = 64  # bytes: a last axis fills whole pieces of this many (Apple, "Deploying Transformers on the ANE")
VIEWS = frozenset(
    {"reshape", "reshape_like", "expand_dims", "squeeze", "flatten2d", "identity", "read_state", "write_state",
     "coreml_update_state", "cond", "while_loop", "shape", "make_list", "list_length"}
)  # fmt: skip
MOVES = frozenset(
    {"transpose", "concat", "split", "stack", "slice_by_index", "slice_by_size", "slice_update", "pad", "tile", "cast",
     "gather", "gather_nd", "gather_along_axis", "scatter", "scatter_nd", "scatter_along_axis", "reverse",
     "reverse_sequence", "depth_to_space", "space_to_depth", "pixel_shuffle", "pixel_unshuffle", "batch_to_space",
     "space_to_batch", "crop", "sliding_windows", "band_part", "fill", "fill_like", "one_hot", "range_1d", "non_zero",
     "select", "list_read", "list_write", "list_gather", "list_scatter", "quantize", "dequantize", "argsort", "topk",
     "random_uniform", "random_normal", "random_bernoulli", "random_categorical"}
)  # fmt: skip
GATHERS = frozenset({"gather", "gather_nd", "gather_along_axis"})


@dataclass(frozen=True)
class Cost:
    """flops: floating-point operations. weights: bytes of constants; read, written: bytes of activations."""

    flops: int
    weights: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        """All that moves."""
        return self.weights + self.read + self.written


def cost_of(op: Op) -> Cost:
    """The cost of one op; PackageError where its shapes contradict what it computes."""
    weights, read, written = _traffic(op)
    return Cost(_flops(op), weights, read, written)


def padding_of(op: Op) -> int:
    """Bytes of activations that the op moves beyond what it needs, because a last axis ends within 64 bytes."""
    if op.type in VIEWS:
        return 0
    return sum(_row_padding(value) for value in (*_activations(op), *op.outputs))


def _row_padding(value: Value) -> int:
    if not value.shape or not value.bits:
        return 0
    row = (value.shape[-1] * value.bits + 7) // 8
    return -row % GRANULE * (value.elements // max(1, value.shape[-1]))


def _activations(op: Op) -> tuple[Value, ...]:
    """What the op reads that is no constant, each once; of a slice update the slice alone."""
    values = op.inputs.get("update", ()) if op.type == "slice_update" else op.values
    return tuple({id(value): value for value in values if not value.fixed}.values())


def _traffic(op: Op) -> tuple[int, int, int]:
    if op.type in VIEWS:
        return 0, 0, 0
    written = sum(value.size for value in op.outputs)
    fixed = {id(value): value for value in op.values if value.fixed and value.dtype and value.dtype.is_float}
    weights = sum(value.stored for value in fixed.values())
    if op.type == "slice_update":
        update = op.need("update").size
        return 0, update, update
    if op.type in GATHERS:  # not the whole table
        return 0, written + sum(value.size for value in op.inputs.get("indices", ()) if not value.fixed), written
    read = sum(value.size for value in _activations(op))
    if op.type in ("slice_by_index", "slice_by_size"):
        read = min(read, written)
    return weights, read, written


def _flops(op: Op) -> int:
    if not op.outputs or op.type in VIEWS or op.type in MOVES:
        return 0
    dtype = op.outputs[0].dtype
    if dtype is None or not dtype.is_float:
        return 0
    counted = _COUNTS.get(op.type)
    if counted is not None:
        return counted(op)
    return _reads(op) if op.type.startswith("reduce_") else sum(value.elements for value in op.outputs)


def _reads(op: Op) -> int:
    return op.need("x").elements


def _biased(op: Op) -> int:
    return op.result.elements if op.value("bias") is not None else 0


def _kernel(op: Op, least: int) -> Value:
    """The weight of a product; PackageError where it has too few axes."""
    weight = op.need("weight")
    if len(weight.shape) < least:
        raise PackageError(f"{op.title} has a weight of shape {list(weight.shape)}; the program is damaged")
    return weight


def _conv(op: Op) -> int:
    return 2 * op.result.elements * math.prod(_kernel(op, 3).shape[1:]) + _biased(op)


def _conv_transpose(op: Op) -> int:
    return 2 * _reads(op) * math.prod(_kernel(op, 3).shape[1:]) + _biased(op)


def _linear(op: Op) -> int:
    return 2 * _reads(op) * _kernel(op, 2).shape[0] + _biased(op)


def _matmul(op: Op) -> int:
    shape = op.need("x").shape
    if not shape:
        raise PackageError(f"{op.title} multiplies a scalar; the program is damaged")
    inner = shape[-2] if op.flag("transpose_x") and len(shape) > 1 else shape[-1]
    return 2 * op.result.elements * inner


def _attention(op: Op) -> int:
    query, key, value = (op.need(name).shape for name in ("query", "key", "value"))
    if min(len(query), len(key), len(value), len(op.result.shape)) < 2:
        raise PackageError(f"{op.title} takes fewer than two axes; the program is damaged")
    batch = math.prod(op.result.shape[:-2])
    scores = batch * query[-2] * key[-2]
    masked = scores if op.value("attn_mask") is not None else 0
    return 2 * scores * query[-1] + scores + masked + 5 * scores + 2 * scores * value[-1]


def _einsum(op: Op) -> int:
    equation = (op.text("equation") or "").replace(" ", "").split("->")[0].split(",")
    values = op.inputs.get("values", ())
    if len(equation) != len(values) or any(
        len(labels) != len(value.shape) for labels, value in zip(equation, values, strict=False)
    ):
        raise PackageError(f"{op.title}: its equation does not fit what it takes; the program is damaged")
    lengths: dict[str, int] = {}
    for labels, value in zip(equation, values, strict=True):
        for label, length in zip(labels, value.shape, strict=True):
            lengths[label] = max(length, lengths.get(label, 1))
    return 2 * math.prod(lengths.values())


def _recurrent(op: Op) -> int:
    shape = op.need("x").shape
    names = ("weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back")
    weights = sum(value.elements for name in names if (value := op.value(name)) is not None)
    return 2 * math.prod(shape[:2]) * weights


def _pool(op: Op) -> int:
    return op.result.elements * math.prod(op.whole("kernel_sizes") or (1,))


def _softmax(op: Op) -> int:
    return 5 * op.result.elements


def _norm(op: Op) -> int:
    given = sum(op.value(name) is not None for name in ("gamma", "beta"))
    return (5 + given) * op.result.elements


_COUNTS: dict[str, Callable[[Op], int]] = {
    "conv": _conv, "conv_transpose": _conv_transpose, "linear": _linear, "matmul": _matmul, "einsum": _einsum,
    "scaled_dot_product_attention": _attention, "lstm": _recurrent, "gru": _recurrent, "rnn": _recurrent,
    "avg_pool": _pool, "max_pool": _pool, "l2_pool": _pool, "softmax": _softmax, "layer_norm": _norm,
    "instance_norm": _norm, "l2_norm": _norm, "batch_norm": _norm,
}  # fmt: skip
