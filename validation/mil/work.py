"""How much one call may compute: a package of a kilobyte can ask for a product that takes a year.

What moves or changes values one by one is bounded by memory, and loops by their rounds (`execution`); products,
windows, recurrent steps and overlaps of boxes are not. They say before they begin how many multiplications they ask
for, from the shapes of what they are given. Limits, and what is the most that a model asks for:
- an op: 2^39, 5 to 12 s of one thread here. 7B with 4,096 rows at once needs 2^38 for its widest product (with the 64
  of a chunk 2^32), FastViTHD at 1152 less than 2^32 for its widest layer;
- a call: 2^46. The same 7B needs 2^44.9 for 4,096 rows, the encoder at 1152 2^38.2.
Counts are of the plain algorithm, whatever a kernel does. Products in blocks (precision "fp16-accumulate") take longer
for as many. Planned programs alone are bounded; who calls an op's function calls it as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from math import prod
from typing import Any

from validation.mil.ops.padding import pad_amounts
from validation.mil.registry import Ints, Op, Packing, Tensor

MOST_OF_AN_OP = 1 << 39  # multiplications
MOST_OF_A_CALL = 1 << 46
WINDOW = 16  # multiplications that a value of a pool's window costs as much as: torch's pools are that much slower
STEP = 1 << 20  # of a recurrent step, however small: what starting its kernels costs
BOX = 32  # for one overlap of two boxes
Count = Callable[..., int]


class _Left(threading.local):
    """What the running call of this thread may still compute; None: no call runs."""

    count: int | None = None


_left = _Left()


@contextmanager
def within_work() -> Iterator[None]:
    """A call: all ops inside, on this thread, have MOST_OF_A_CALL together."""
    before = _left.count
    _left.count = MOST_OF_A_CALL
    try:
        yield
    finally:
        _left.count = before


def bounded(op: Op) -> Op:
    """Returns the op, whose functions say first what they ask for; ValueError where that is too much."""
    count = _COUNTS.get(op.name)
    if count is None:
        return op
    blocked, pieced = (None if form is None else _spending(form, count) for form in (op.blocked, op.pieced))
    return replace(op, function=_spending(op.function, count), blocked=blocked, pieced=pieced)


def bounded_packing(packing: Packing) -> Callable[..., Any]:
    """The same for the function of an op whose constants have another layout (of `ops.packed`)."""
    return _spending(packing.function, _packed)


def _spending(function: Callable[..., Any], count: Count) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        _spend(count(*arguments))
        return function(*arguments)

    return call


def _spend(count: int) -> None:
    if count > MOST_OF_AN_OP:
        raise ValueError(f"it asks for {count:,} multiplications, at most {MOST_OF_AN_OP:,} are done for one op")
    if _left.count is not None:
        _left.count -= count
        if _left.count < 0:
            raise ValueError(f"with it this call asks for more than {MOST_OF_A_CALL:,} multiplications")


def _packed(x: Tensor, layout: Any) -> int:
    return x.numel() * int(layout.outputs)


def _linear(x: Tensor, weight: Tensor, *_: Any) -> int:
    return x.numel() * prod(weight.shape[:-1])


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> int:
    left = x.mT if transpose_x and x.ndim > 1 else x
    right = y.mT if transpose_y and y.ndim > 1 else y
    return _batches(left, right) * prod(left.shape[-2:]) * prod(right.shape[-1:] if right.ndim > 1 else ())


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    rows = prod(query.shape[-2:-1]) * prod(key.shape[-2:-1])
    return _batches(query, key) * rows * (prod(query.shape[-1:]) + prod(value.shape[-1:]))


def _batches(first: Tensor, second: Tensor) -> int:
    """How many matrices two operands with batch axes make, which broadcast."""
    pairs = zip_longest(first.shape[-3::-1], second.shape[-3::-1], fillvalue=1)
    return prod(max(pair) if min(pair) else 0 for pair in pairs)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strides: Ints | None = None, pad_type: str = "valid",
    pad: Ints | None = None, dilations: Ints | None = None, groups: int = 1,
) -> int:  # fmt: skip
    kernel = weight.shape[2:]
    return prod(x.shape[:1]) * weight.numel() * _places(x, kernel, strides, pad_type, pad, dilations)


def _conv_transpose(x: Tensor, weight: Tensor, *_: Any) -> int:
    return x.numel() * prod(weight.shape[1:])


def _pool(
    x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints | None = None, *_: Any
) -> int:
    return WINDOW * prod(x.shape[:2]) * prod(kernel_sizes) * _places(x, kernel_sizes, strides, pad_type, pad, None)


def _places(
    x: Tensor, kernel: Sequence[int], strides: Ints | None, pad_type: str, pad: Ints | None, dilations: Ints | None
) -> int:
    """At how many places a window lies over the spatial axes of x, one more along each axis than are whole."""
    ones = (1,) * len(kernel)
    strides, dilations = strides or ones, dilations or ones
    amounts = pad_amounts(pad_type, pad or (0,) * 2 * len(kernel), x.shape[2:], kernel, strides, dilations)
    axes = zip(x.shape[2:], amounts, kernel, strides, dilations, strict=True)
    return prod(
        max(0, size + sum(more) - (width - 1) * dilation - 1) // max(1, stride) + 1
        for size, more, width, stride, dilation in axes
    )


def _einsum(values: Sequence[Tensor], equation: str) -> int:
    """The product of all its axes; what is no equation, or has other axes than its values, torch refuses."""
    lengths: dict[str, int] = {}
    for letters, value in zip(equation.replace(" ", "").split("->")[0].split(","), values, strict=False):
        for letter, length in zip(letters, value.shape, strict=False):
            lengths[letter] = max(length, lengths.get(letter, 1))
    return prod(lengths.values())


def _recurrent(x: Tensor, *states: Any) -> int:
    """x (S, B, I), states and weights: each step multiplies all weights with each row."""
    rows = prod(x.shape[1:2])
    weights = sum(each.numel() for each in states if isinstance(each, Tensor) and each.ndim == 2)
    return prod(x.shape[:1]) * max(STEP, rows * weights)


def _overlaps(boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int, *_: Any) -> int:
    """boxes (n, B, 4) or (n, 4, B): each that is kept is held against all."""
    each = boxes.numel() // (4 * max(1, prod(boxes.shape[:1])))
    return BOX * boxes.numel() // 4 * min(each, max(0, max_boxes))


_COUNTS: dict[str, Count] = {
    "linear": _linear, "matmul": _matmul, "scaled_dot_product_attention": _attention, "einsum": _einsum,
    "conv": _conv, "conv_transpose": _conv_transpose, "max_pool": _pool, "avg_pool": _pool, "l2_pool": _pool,
    "rnn": _recurrent, "gru": _recurrent, "lstm": _recurrent, "non_maximum_suppression": _overlaps,
}  # fmt: skip
