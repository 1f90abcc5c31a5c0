"""Rules on shapes: rank, length of axes, what is known only at run time, and what a short last axis costs.

The engine's own layout has five axes, N D C H W. Width and height are the last two of a tensor and channels the third
from the end; shorter ranks are held to the width's limit throughout, because nobody has published which axis of a
rank-3 tensor becomes which.
"""

from __future__ import annotations

from math import prod

from validation.lint.cost import GRANULE, VIEWS, padding_of
from validation.lint.rule import Confidence, Hit, Rule, Setting, Verdict
from validation.lint.rules.interface import is_edge
from validation.lint.sources import (
    APPLE_TRANSFORMERS,
    COREAI_QUOTED,
    CT_RANK,
    GUIDE_FAMILY,
    GUIDE_PITFALLS,
    GUIDE_RULES,
    GUIDE_SURFACE,
    JR_GUIDE,
    JR_OPS,
    RUSTANE,
)
from validation.program.contents import Op, Value

MOST_RANK, BEST_RANK = 5, 4
PRODUCTS = ("matmul", "linear", "conv", "conv_transpose")
LANES = 32  # fp16 numbers in 64 bytes
INDEXED = ("slice_by_index", "slice_by_size")
PARTS = (2, 3)  # what the engine can repeat and stride by, and their products
SATURATES = 4_094  # 65,504 / 16


def _tensors(op: Op) -> tuple[Value, ...]:
    return tuple(value for value in (*op.values, *op.outputs) if value.tensor and not value.fixed)


def _rank(op: Op, _: Setting) -> Hit | None:
    most = max((len(value.shape) for value in _tensors(op)), default=0)
    return Hit(f"rank {most}, the most is {MOST_RANK}") if most > MOST_RANK else None


def _rank_five(op: Op, _: Setting) -> Hit | None:
    most = max((len(value.shape) for value in _tensors(op)), default=0)
    return Hit(f"rank {most}, {BEST_RANK} is preferred") if BEST_RANK < most <= MOST_RANK else None


def _product_rank(op: Op, _: Setting) -> Hit | None:
    if op.type not in PRODUCTS:
        return None
    rank = len(op.result.shape)
    return Hit(f"{op.type} of rank {rank}") if rank > BEST_RANK else None


def _axis(op: Op, setting: Setting) -> Hit | None:
    if is_edge(op, setting):
        return None
    for value in _tensors(op):
        for place, length in enumerate(value.shape):
            channel = len(value.shape) >= BEST_RANK and place == len(value.shape) - 3
            limit = setting.engine.channels if channel else setting.engine.axis
            if length > limit:
                return Hit(f"axis {place} of {value.type} is longer than {limit:,} ({setting.engine.name})")
    return None


def _dynamic(op: Op, _: Setting) -> Hit | None:
    found = next((value for value in (*op.values, *op.outputs) if value.dynamic), None)
    return Hit(f"{found.name} is {found.type}") if found else None


def _dynamic_slice(op: Op, _: Setting) -> Hit | None:
    if op.type not in INDEXED or not (op.result.dtype and op.result.dtype.is_float):
        return None
    computed = [name for name in ("begin", "end", "size") if (value := op.value(name)) and not value.fixed]
    return Hit(f"{' and '.join(computed)} computed") if computed else None


def _last_axis(op: Op, setting: Setting) -> Hit | None:
    if op.type in VIEWS or is_edge(op, setting):
        return None
    floats = [value for value in _tensors(op) if value.shape and value.dtype and value.dtype.is_float]
    ragged = [value.shape[-1] for value in floats if value.shape[-1] * value.bits % (GRANULE * 8)]
    extra = padding_of(op)
    return Hit(f"last axis of {min(ragged)}, stored as multiples of {LANES}", extra) if ragged and extra else None


def _transpose(op: Op, _: Setting) -> Hit | None:
    if op.type != "transpose":
        return None
    return Hit(f"{op.need('x').type} turned by {list(op.whole('perm') or ())}", 2 * op.result.size)


def _tile(op: Op, _: Setting) -> Hit | None:
    if op.type != "tile":
        return None
    return Hit(f"repeated {list(op.whole('reps') or ())} times", op.result.size - op.need("x").size)


def _tile_parts(op: Op, _: Setting) -> Hit | None:
    if op.type != "tile":
        return None
    wrong = [count for count in op.whole("reps") or () if not of_parts(count)]
    return Hit(f"repeats {wrong[0]} times") if wrong else None


def of_parts(number: int) -> bool:
    """Whether a count has no prime factor but 2 and 3."""
    if number < 1:
        return False
    for part in PARTS:
        while number % part == 0:
            number //= part
    return number == 1


def _offset_slice(op: Op, _: Setting) -> Hit | None:
    """A cut of the last axis that does not begin at its start; a split has such parts too."""
    if not (op.outputs and op.result.dtype and op.result.dtype.is_float):
        return None
    shape = op.value("x").shape if op.value("x") else ()  # type: ignore[union-attr]
    if op.type == "split" and shape:
        axis = (op.whole("axis") or (0,))[0] % len(shape)
        return Hit(f"last axis of {shape[-1]} split") if axis == len(shape) - 1 and len(op.outputs) > 1 else None
    if op.type not in INDEXED or not shape:
        return None
    begin, masked = op.whole("begin"), op.numbers("begin_mask")
    if begin is None or len(begin) != len(shape) or begin[-1] == 0 or (masked and masked[-1]):
        return None
    return Hit(f"last axis of {shape[-1]} cut at {begin[-1]}")


def _argmax_axis(op: Op, _: Setting) -> Hit | None:
    if op.type not in ("reduce_argmax", "reduce_argmin"):
        return None
    shape = op.need("x").shape
    axis = (op.whole("axis") or (-1,))[0]
    length = shape[axis] if shape and -len(shape) <= axis < len(shape) else prod(shape)
    return Hit(f"over {length:,}, the most is 2,048") if length > 2_048 else None


RULES = (
    Rule(
        "rank", "A tensor of rank 6 or more leaves.", Verdict.LEAVES, _rank,
        (CT_RANK, COREAI_QUOTED, GUIDE_SURFACE), Confidence.APPLE,
    ),
    Rule(
        "product-rank", "A convolution or matrix product of rank 5 leaves.", Verdict.LEAVES, _product_rank,
        (GUIDE_SURFACE, GUIDE_RULES), Confidence.MEASURED,
    ),
    Rule(
        "axis", "An axis longer than the engine's leaves: 16,384 up to H15, 65,536 from H16 and for channels.",
        Verdict.LEAVES, _axis, (GUIDE_RULES, GUIDE_FAMILY, RUSTANE), Confidence.MEASURED,
    ),
    Rule(
        "dynamic-shape", "A length that is known only at run time leaves: the engine compiles fixed shapes.",
        Verdict.LEAVES, _dynamic, (COREAI_QUOTED, GUIDE_PITFALLS), Confidence.APPLE,
    ),
    Rule(
        "dynamic-slice", "Cutting a tensor at a place that is computed leaves.", Verdict.LEAVES, _dynamic_slice,
        (JR_OPS, GUIDE_SURFACE), Confidence.MEASURED,
    ),
    Rule(
        "argmax-axis", "The largest of more than 2,048 is not searched on the engine.", Verdict.LEAVES, _argmax_axis,
        (GUIDE_RULES,), Confidence.MEASURED,
    ),
    Rule(
        "tile-parts", "Repeating by a count with another prime factor than 2 and 3 leaves.", Verdict.LEAVES,
        _tile_parts, (GUIDE_RULES,), Confidence.READ,
    ),
    Rule(
        "last-axis", "A last axis is stored in pieces of 64 bytes: a step of one row moves up to 32 times its bytes.",
        Verdict.COSTS, _last_axis, (APPLE_TRANSFORMERS, COREAI_QUOTED), Confidence.APPLE,
    ),
    Rule(
        "rank-five", "Rank 5 is taken; rank 4 is what the engine likes.", Verdict.COSTS, _rank_five,
        (APPLE_TRANSFORMERS, COREAI_QUOTED), Confidence.APPLE,
    ),
    Rule(
        "transpose", "A transpose moves every number twice and computes nothing.", Verdict.COSTS, _transpose,
        (APPLE_TRANSFORMERS, JR_GUIDE), Confidence.APPLE,
    ),
    Rule(
        "tile", "A tile writes the same numbers several times; a product that repeats by broadcasting does not.",
        Verdict.COSTS, _tile, (APPLE_TRANSFORMERS,), Confidence.APPLE,
    ),
    Rule(
        "offset-slice", f"A last axis cut elsewhere than at its start: values beyond {SATURATES:,} become infinite.",
        Verdict.RISKS, _offset_slice, (GUIDE_PITFALLS, GUIDE_FAMILY), Confidence.MEASURED, last="H14",
    ),
)  # fmt: skip
