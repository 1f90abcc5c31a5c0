"""What the ops of a planned program spend of a call's work (`allowance`), and how it is counted.

- Products, windows, recurrent steps, boxes and rows that are taken one by one say before they begin how many
  multiplications they ask for, from the shapes of what they are given (`_COUNTS`), at most 2^39 an op: 5 to 12 s. 7B
  with 4,096 rows at once needs 2^38 for its widest product (with the 64 of a chunk 2^32), FastViTHD at 1152 less than
  2^32 for its widest layer.
- Values: each that an op reads or makes has a price by the kind of op (`price`).
- Ops: STEP each time that one runs, ARGUMENT for each thing that it takes or gives. Loops spend each round anew.

Counts are of the plain algorithm, whatever a kernel does. What an op reads is spent before it runs and what it makes
afterwards, so the op that goes beyond is still finished: a fill, or a sum of a row and a column, makes no more than
memory holds. Products in blocks (precision "fp16-accumulate") take longer for as many. Planned programs alone are
bounded; who calls an op's function calls it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import prod
from typing import Any

from validation.mil.allowance import allowance
from validation.mil.ops.padding import pad_amounts
from validation.mil.registry import Ints, Kind, Op, Packing, Tensor

MOST_OF_AN_OP = 1 << 39  # multiplications
WINDOW = 16  # multiplications that a value of a pool's window costs as much as: torch's pools are that much slower
STEP = 1 << 20  # of an op, a recurrent step or a row by itself, however small: what starting its kernels costs
ARGUMENT = 1 << 14
BOX = 32  # for one overlap of two boxes
NEIGHBOUR = 64  # for each of the values that a local response norm adds up
LARGE = 1 << 18  # values of an operand whose matrices are multiplied one by one (`ops.batched`)
Count = Callable[..., int]

# A value that is read or made. Measured of the slowest type and layout, in ns (2^6 are 0.9): add 3.3, silu 0.3, a copy
# 2 of two or three values each; sin 5.9, erf 6.1, softmax 1.7; cumsum 15.5, acos 24, resize 34, gather_along_axis 42;
# argsort 245, topk 266. benchmarks/work_prices.py times calls beside what they are charged: at most 1.4 as much.
PLAIN, FUNCTION, SLOW, SORTED = 1 << 7, 1 << 8, 1 << 10, 1 << 13
PRICES: dict[str, int] = {
    **dict.fromkeys(("linear", "matmul", "conv", "conv_transpose", "einsum", "cast", "fill", "fill_like"), PLAIN),
    **dict.fromkeys(("reduce_sum", "reduce_mean", "batch_norm"), PLAIN),
    **dict.fromkeys(("cumsum", "acos", "asin", "instance_norm", "gather_along_axis", "gather_nd"), SLOW),
    **dict.fromkeys(("scatter", "scatter_along_axis", "scatter_nd", "reduce_argmax", "reduce_argmin"), SLOW),
    **dict.fromkeys(("resize_bilinear", "upsample_bilinear", "resize", "crop_resize", "resample", "affine"), SLOW),
    **dict.fromkeys(("max_pool", "avg_pool", "l2_pool"), SLOW),
    **dict.fromkeys(("argsort", "topk", "non_maximum_suppression", "random_categorical", "classify"), SORTED),
}
PARTLY = {  # read no more than they make, or nothing at all
    "slice_by_index", "slice_by_size", "gather", "shape", "list_length", "list_read", "list_gather", "crop",
}  # fmt: skip
# What the first two read and make is spent within their blocks, and the third gives what lies there.
FREE = {"cond", "while_loop", "read_state"}


def price(op: Op) -> int:
    """What a value costs that the op reads or makes."""
    return 0 if op.name in FREE else PRICES.get(op.name, FUNCTION if op.kind is Kind.FLOAT else PLAIN)


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
    running = allowance()
    running.left -= count
    running.check()


def _packed(x: Tensor, layout: Any) -> int:
    return x.numel() * int(layout.outputs)


def _linear(x: Tensor, weight: Tensor, *_: Any) -> int:
    return x.numel() * prod(weight.shape[:-1])


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> int:
    left = x.mT if transpose_x and x.ndim > 1 else x
    right = y.mT if transpose_y and y.ndim > 1 else y
    least = STEP if min(left.ndim, right.ndim) > 2 and max(left.numel(), right.numel()) >= LARGE else 0
    each = prod(left.shape[-2:]) * prod(right.shape[-1:] if right.ndim > 1 else ())
    return _batches(left, right) * max(least, each)


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
    images = prod(boxes.shape[:1])
    each = boxes.numel() // (4 * max(1, images))
    return images * (each * STEP // 8 + min(each, max(0, max_boxes)) * max(BOX * each, 8 * STEP))


def _normed(x: Tensor, size: int, *_: Any) -> int:
    return NEIGHBOUR * x.numel() * max(0, size)


def _scattered(data: Tensor, indices: Tensor, updates: Tensor, *options: Any) -> int:
    """Modes that multiply or compare take one row after another; there are no more rows than indices."""
    one_by_one = any(option in ("mul", "div", "max", "min") for option in options)
    return indices.numel() * STEP if one_by_one else 0


def _gathered(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, *_: Any) -> int:
    return prod(x.shape[:batch_dims]) * STEP if batch_dims else 0


def _gathered_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, *_: Any) -> int:
    return prod(x.shape[:batch_dims]) * STEP


def _one_by_one(first: Any, places: Sequence[int], *_: Any) -> int:
    """Lengths of sequences, or elements of a list."""
    return len(places) * 4 * STEP


def _placed(x: Tensor, height: int, width: int, *_: Any) -> int:
    """What makes a large map of a small one has to say so before: its readers would ask too late."""
    return SLOW * prod(x.shape[:-2]) * max(0, height) * max(0, width)


def _enlarged(x: Tensor, by_height: float, by_width: float, *_: Any) -> int:
    return _placed(x, int(x.shape[-2] * by_height), int(x.shape[-1] * by_width))


def _resized(x: Tensor, shape: Ints, resized_dims: int, *_: Any) -> int:
    lengths = [*x.shape[: x.ndim - resized_dims], *(shape[-resized_dims:] if resized_dims else ())]
    return SLOW * prod(length or found for length, found in zip(lengths, x.shape, strict=False))


def _cropped(x: Tensor, roi: Tensor | None, boxes: Tensor | None, _: Any, height: int, width: int, *__: Any) -> int:
    crops = max(len(each) for each in (roi, boxes, ()) if each is not None)
    return SLOW * crops * prod(x.shape[-3:-2]) * max(0, height) * max(0, width)


def _sampled(x: Tensor, coordinates: Tensor, *_: Any) -> int:
    return _placed(x, *coordinates.shape[1:3])


def _transformed(x: Tensor, _: Any, height: int, width: int, *__: Any) -> int:
    return _placed(x, height, width)


def _drawn(x: Tensor, mode: str = "logits", size: int = 1, *_: Any) -> int:
    return SORTED * prod(x.shape[:-1]) * max(0, size)


_COUNTS: dict[str, Count] = {
    "linear": _linear, "matmul": _matmul, "scaled_dot_product_attention": _attention, "einsum": _einsum,
    "conv": _conv, "conv_transpose": _conv_transpose, "max_pool": _pool, "avg_pool": _pool, "l2_pool": _pool,
    "rnn": _recurrent, "gru": _recurrent, "lstm": _recurrent, "non_maximum_suppression": _overlaps,
    "local_response_norm": _normed, "scatter": _scattered, "scatter_along_axis": _scattered, "scatter_nd": _scattered,
    "gather": _gathered, "gather_nd": _gathered_nd, "reverse_sequence": _one_by_one, "list_gather": _one_by_one,
    "list_scatter": _one_by_one, "resize_bilinear": _placed, "upsample_bilinear": _enlarged, "resize": _resized,
    "crop_resize": _cropped, "resample": _sampled, "affine": _transformed, "random_categorical": _drawn,
}  # fmt: skip
