"""For each rule a program that breaks exactly it, and one beside it that does not.

also: other rules of the same verdict that cannot but be broken with it, each for the reason given at its case.
device: where the default, the oldest engine, is not meant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from lint_programs import FULL, HALF, WHOLE, builder, cache_write, conv, converted, message, palette, scaled


@dataclass(frozen=True)
class Case:
    """One rule with both programs; `broken` and `clean` make them when a test asks."""

    rule: str
    broken: Callable[[], Any]
    clean: Callable[[], Any]
    also: frozenset[str] = frozenset()
    device: str | None = None


def case(rule: str, broken: Callable[[], Any], clean: Callable[[], Any], also: str = "", device: Any = None) -> Case:
    return Case(rule, broken, clean, frozenset(also.split()), device)


def on(*inputs: Any) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """`on(shape, shape …)(body)`: a builder program over fp16 inputs of these shapes, made when it is called."""
    given = [item if isinstance(item[-1], type) else (item, HALF) for item in inputs]
    return lambda body: lambda: builder(body, given)


MAP, ROW = (1, 4, 8, 32), (1, 64)
PLAIN = on(MAP)(lambda x: mb.relu(x=x))
STATE = (1, 2, 64, 32)
ONE = (1, 2, 1, 32)


def through_rank(rank: int) -> Callable[[], Any]:
    """A tensor of some rank on the way; by messages, because the converter refuses to write rank 6 itself."""
    shape = (*[1] * (rank - 2), 32, 32)
    there = ("reshape", {"x": "@x", "shape": np.array(shape, np.int32)}, {"r": ("fp16", shape)})
    back = ("reshape", {"x": "@r", "shape": np.array(MAP, np.int32)}, {"y": ("fp16", MAP)})
    return lambda: message([there, back])


def product(rank: int) -> Callable[[], Any]:
    shape = (*[1] * (rank - 2), 32, 32)
    return on(shape, shape)(lambda a, b: mb.matmul(x=a, y=b))


def with_state(body: Callable[..., Any], *states: Any) -> Callable[[], Any]:
    return lambda: builder(body, [(ONE, HALF)], states or (STATE,))


def several(count: int) -> Callable[[], Any]:
    def body(x: Any, *states: Any) -> Any:
        for state in states:
            y = cache_write(x, state)
        return y

    return with_state(body, *[STATE] * count)


def aligned(last: int) -> Callable[[], Any]:
    shape = (1, 2, 4, last)
    return lambda: builder(
        lambda x, s: mb.relu(x=mb.add(x=mb.read_state(input=s), y=x)), [((1, 2, 1, last), HALF)], [shape]
    )


def weighted(make: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    """A 1×1 convolution from 64 to 64 channels whose weight `make` makes."""
    return on((1, 64, 8, 32))(lambda x: conv(x, kernel=(1, 1), weight=make(), **options))


def stateful_palette(entries: int) -> Callable[[], Any]:
    def body(x: Any, state: Any) -> Any:
        return conv(cache_write(x, state), kernel=(1, 1), weight=palette((64, 2, 1, 1), entries=entries))

    return with_state(body)


def branched(x: Any) -> Any:
    largest = mb.squeeze(x=mb.reduce_max(x=x, axes=[0, 1, 2, 3], keep_dims=True))
    return mb.cond(
        pred=mb.greater(x=largest, y=np.float16(0)), _true_fn=lambda: mb.relu(x=x), _false_fn=lambda: mb.exp(x=x)
    )


def flexible(kind: str) -> Callable[[], Any]:
    """Inputs with a range of sizes, with several, or with one."""

    def make() -> Any:
        spec = PLAIN().get_spec()
        array = spec.description.input[0].type.multiArrayType
        if kind == "range":
            for length in MAP:
                array.shapeRange.sizeRanges.add(lowerBound=1, upperBound=length)
        for sizes in {"enumerated": (MAP, (1, 4, 8, 64))}.get(kind, ()):
            array.enumeratedShapes.shapes.add(shape=sizes)
        return spec

    return make


def imaged(image: bool) -> Callable[[], Any]:
    shape = (1, 3, 32, 32)
    given = ct.ImageType("x", shape, scale=1 / 255) if image else ct.TensorType("x", shape, dtype=np.float16)
    return lambda: converted(
        torch.nn.Conv2d(3, 4, 3), shape, inputs=[given], outputs=[ct.TensorType("y", dtype=np.float16)]
    )


def tensor_io(dtype: Any) -> Callable[[], Any]:
    shape = (1, 3, 32, 32)
    return lambda: converted(
        torch.nn.Conv2d(3, 4, 3), shape, inputs=[ct.TensorType("x", shape, dtype=dtype)],
        outputs=[ct.TensorType("y", dtype=dtype)],
    )  # fmt: skip


def truth(inside: bool) -> Any:
    """A choice by truth values that are compared inside, or come in."""
    tensor, flags = ("fp16", MAP), ("bool", MAP)
    compare = ("greater", {"x": "@x", "y": np.float16(0)}, {"c": flags})
    choose = ("select", {"cond": "@c", "a": "@x", "b": "@x"}, {"y": tensor})
    if inside:
        return message([compare, choose])
    return message([choose], {"x": np.zeros(MAP, HALF), "c": np.zeros(MAP, bool)})


def unknown_lengths(known: bool) -> Any:
    return message([("relu", {"x": "@x"}, {"y": ("fp16", MAP if known else (1, None, 8, 32))})])


def typed_factor(dtype: type) -> Any:
    return message([("mul", {"x": "@x", "y": np.full((1, 4, 1, 1), 2, dtype)}, {"y": ("fp16", MAP)})])


def of_type(kind: str) -> Any:
    return message([(kind, {"x": "@x"}, {"y": ("fp16", MAP)})])


CASES = (
    case("float32", on((MAP, FULL))(lambda x: mb.relu(x=x)), PLAIN),
    case("float32-constant", lambda: typed_factor(FULL), lambda: typed_factor(HALF)),
    case("integer", on((MAP, WHOLE))(lambda x: mb.add(x=x, y=np.int32(1))), PLAIN),
    case(
        "cast",
        on(MAP)(lambda x: mb.relu(x=mb.cast(x=mb.cast(x=mb.exp(x=x), dtype="fp32"), dtype="fp16"))),
        on(MAP)(lambda x: mb.relu(x=mb.exp(x=x))),
    ),
    case("bool", lambda: truth(inside=False), lambda: truth(inside=True)),
    case("rank", through_rank(6), through_rank(4)),
    case("product-rank", product(5), product(4)),
    case("axis", on((1, 16_416))(lambda x: mb.relu(x=x)), on((1, 16_384))(lambda x: mb.relu(x=x))),
    case("dynamic-shape", lambda: unknown_lengths(known=False), lambda: unknown_lengths(known=True)),
    case(
        "dynamic-slice",
        on(MAP, ((4,), WHOLE))(lambda x, at: mb.slice_by_size(x=x, begin=at, size=[1, 2, 4, 32])),
        on(MAP)(lambda x: mb.slice_by_size(x=x, begin=[0, 2, 4, 0], size=[1, 2, 4, 32])),
    ),
    # Its result is whole numbers, which leave whatever they are.
    case(
        "argmax-axis",
        on((1, 4_096))(lambda x: mb.reduce_argmax(x=x, axis=1)),
        on((1, 2_048))(lambda x: mb.reduce_argmax(x=x, axis=1)),
        also="integer",
    ),
    case(
        "tile-parts",
        on(MAP)(lambda x: mb.tile(x=x, reps=[1, 5, 1, 1])),
        on(MAP)(lambda x: mb.tile(x=x, reps=[1, 6, 1, 1])),
    ),
    case("no-path", on(MAP)(lambda x: mb.reduce_prod(x=x, axes=[1])), on(MAP)(lambda x: mb.reduce_sum(x=x, axes=[1]))),
    case("later-engine", on(MAP)(lambda x: mb.sin(x=x)), on(MAP)(lambda x: mb.exp(x=x))),
    case("unknown-op", lambda: of_type("fused_everything"), lambda: of_type("relu")),
    case(
        "gather",
        on(((4,), WHOLE))(lambda at: mb.gather(x=np.ones((576, 64), HALF), indices=at, axis=0)),
        on(ROW)(lambda x: mb.relu(x=x)),
    ),
    # The branch itself has no path; what stands in it goes along.
    case("control-flow", on(MAP)(branched), on(MAP)(lambda x: mb.exp(x=x)), also="no-path"),
    case("conv-kernel", on(MAP)(lambda x: conv(x, kernel=(1, 14))), on(MAP)(lambda x: conv(x, kernel=(1, 13)))),
    case("conv-stride", on(MAP)(lambda x: conv(x, strides=[1, 5])), on(MAP)(lambda x: conv(x, strides=[1, 4]))),
    case("conv-dilation", on(MAP)(lambda x: conv(x, dilations=[1, 5])), on(MAP)(lambda x: conv(x, dilations=[1, 6]))),
    # Three axes to slide over are five axes in all.
    case(
        "conv-3d",
        on((1, 2, 8, 8, 32))(lambda x: conv(x, kernel=(3, 3, 3))),
        on(MAP)(lambda x: conv(x)),
        also="product-rank",
    ),
    case(
        "conv-weight",
        on((2, 4, 8, 32), (4, 4, 1, 1))(lambda x, w: mb.conv(x=x, weight=w)),
        on(MAP, (4, 4, 1, 1))(lambda x, w: mb.conv(x=x, weight=w)),
    ),
    case(
        "conv-channels",
        on((1, 1, 1, 32))(lambda x: conv(x, outputs=32_768, kernel=(1, 1))),
        on((1, 1, 1, 32))(lambda x: conv(x, outputs=32_736, kernel=(1, 1))),
    ),
    case(
        "palette-stride",
        weighted(lambda: palette((64, 64, 1, 1)), strides=[1, 4]),
        weighted(lambda: palette((64, 64, 1, 1)), strides=[1, 2]),
    ),
    case(
        "pool-window",
        on((1, 4, 32, 32))(lambda x: mb.avg_pool(x=x, kernel_sizes=[16, 16], pad_type="valid")),
        on((1, 4, 32, 32))(lambda x: mb.avg_pool(x=x, kernel_sizes=[13, 13], pad_type="valid")),
    ),
    case(
        "pool-stride",
        on((1, 4, 32, 32))(lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[4, 4], pad_type="valid")),
        on((1, 4, 32, 32))(lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid")),
    ),
    case(
        "pad-axis",
        on(MAP)(lambda x: mb.pad(x=x, pad=[0, 0, 1, 1, 0, 0, 0, 0])),
        on(MAP)(lambda x: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 1, 2, 2])),
    ),
    case(
        "pad-mode",
        on(MAP)(lambda x: mb.pad(x=x, pad=[1, 1, 1, 1], mode="reflect")),
        on(MAP)(lambda x: mb.pad(x=x, pad=[1, 1, 1, 1], mode="constant")),
    ),
    case("state-alignment", aligned(48), aligned(64)),
    case("state-count", several(3), several(1)),
    case(
        "state-standalone",
        with_state(lambda x, s: cache_write(x, s, standalone=True)),
        with_state(lambda x, s: cache_write(x, s)),
    ),
    case(
        "blocks",
        weighted(lambda: scaled((64, 64, 1, 1), (64, 2, 1, 1))),
        weighted(lambda: scaled((64, 64, 1, 1), (64, 1, 1, 1))),
    ),
    case(
        "palette-scale",
        weighted(lambda: scaled((64, 64, 1, 1), (64, 1, 1, 1), data=palette((64, 64, 1, 1)))),
        weighted(lambda: palette((64, 64, 1, 1))),
    ),
    case(
        "palette-axis",
        weighted(lambda: palette((64, 64, 1, 1), groups=2, axis=1)),
        weighted(lambda: palette((64, 64, 1, 1), groups=2)),
    ),
    case("flexible-range", flexible("range"), flexible("")),
    # Costs.
    case("last-axis", on((1, 4, 8, 8))(lambda x: mb.relu(x=x)), PLAIN),
    case("rank-five", through_rank(5), through_rank(4)),
    case(
        "transpose",
        on((1, 32, 8, 32))(lambda x: mb.transpose(x=x, perm=[0, 3, 2, 1])),
        on((1, 32, 8, 32))(lambda x: mb.reshape(x=x, shape=[1, 8, 32, 32])),
    ),
    case(
        "tile",
        on((1, 1, 8, 32))(lambda x: mb.tile(x=x, reps=[1, 4, 1, 1])),
        on((1, 1, 8, 32), MAP)(lambda x, y: mb.add(x=x, y=y)),
    ),
    case(
        "linear",
        on(ROW)(lambda x: mb.linear(x=x, weight=np.ones((32, 64), HALF))),
        on((1, 64, 1, 32))(lambda x: conv(x, kernel=(1, 1))),
    ),
    case(
        "scales-fold",
        weighted(lambda: scaled((64, 64, 1, 1), (64, 1, 1, 1))),
        weighted(lambda: np.ones((64, 64, 1, 1), HALF)),
    ),
    # Risks.
    case(
        "infinite",
        on(MAP)(lambda x: mb.add(x=x, y=np.array([0, -np.inf] * 16, HALF))),
        on(MAP)(lambda x: mb.add(x=x, y=np.array([0, -1e4] * 16, HALF))),
    ),
    case(
        "offset-slice",
        on(ROW)(lambda x: mb.slice_by_index(x=x, begin=[0, 32], end=[1, 64])),
        on(ROW)(lambda x: mb.slice_by_index(x=x, begin=[0, 0], end=[1, 32])),
    ),
    case("argmax", on(ROW)(lambda x: mb.reduce_argmax(x=x, axis=1)), on(ROW)(lambda x: mb.relu(x=x))),
    case("state-two", several(2), several(1), also="state-written"),
    case("state-written", with_state(lambda x, s: cache_write(x, s)), aligned(64)),
    case("palette-state", stateful_palette(16), stateful_palette(64), also="state-written"),
    case(
        "palette-vector",
        weighted(lambda: palette((64, 64, 1, 1), vector=2)),
        weighted(lambda: palette((64, 64, 1, 1))),
    ),
    case(
        "offsets",
        weighted(lambda: scaled((64, 64, 1, 1), (64, 1, 1, 1), offset=True)),
        weighted(lambda: scaled((64, 64, 1, 1), (64, 1, 1, 1))),
    ),
    case("flexible-enumerated", flexible("enumerated"), flexible("")),
    # The edge.
    case("image-scaling", imaged(True), imaged(False)),
    case("io-cast", tensor_io(FULL), tensor_io(HALF)),
)  # fmt: skip

TALL = (1, 4, 64, 32)
# Rules have more than one side: for each a program that breaks the other side, and one that does not.
OTHER_SIDES = (
    case("conv-kernel", on(TALL)(lambda x: conv(x, kernel=(30, 1))), on(TALL)(lambda x: conv(x, kernel=(29, 1)))),
    case("axis", on((1, 1, 1, 16_416))(lambda x: mb.relu(x=x)), on((1, 16_416, 1, 1))(lambda x: mb.relu(x=x))),
    case(
        "linear",
        on((1, 8, 64))(lambda x: mb.matmul(x=x, y=np.ones((64, 32), HALF))),
        on((1, 8, 64), (1, 64, 32))(lambda a, b: mb.matmul(x=a, y=b)),
    ),
    case(
        "offset-slice",
        on(MAP)(lambda x: mb.split(x=x, num_splits=2, axis=-1)),
        on(MAP)(lambda x: mb.split(x=x, num_splits=2, axis=1)),
    ),
    case(
        "gather",
        on(ROW, ((4,), WHOLE))(lambda x, at: mb.gather(x=x, indices=at, axis=1)),
        on(ROW)(lambda x: mb.slice_by_size(x=x, begin=[0, 0], size=[1, 4])),
    ),
    case(
        "infinite",
        on(MAP)(lambda x: mb.add(x=x, y=np.array([0, np.nan] * 16, HALF))),
        on(MAP)(lambda x: mb.add(x=x, y=np.array([0, 65_504] * 16, HALF))),
    ),
    # A cache that goes in and out of the program instead of a state.
    case(
        "state-standalone",
        on((1, 2, 64, 32), ONE)(lambda c, x: mb.slice_update(x=c, update=x, begin=[0, 0, 3, 0], end=[1, 2, 4, 32])),
        with_state(lambda x, s: cache_write(x, s)),
    ),
    # One scale for all inputs of an output is taken, one for all outputs of an input is not.
    case(
        "blocks",
        weighted(lambda: scaled((64, 64, 1, 1), (1, 64, 1, 1))),
        weighted(lambda: scaled((64, 64, 1, 1), (1, 1, 1, 1))),
    ),
    # The weights of a product lie the other way round, so its outputs are their last axis.
    case(
        "blocks",
        on(ROW)(lambda x: mb.matmul(x=x, y=scaled((64, 32), (64, 1)))),
        on(ROW)(lambda x: mb.matmul(x=x, y=scaled((64, 32), (1, 32)))),
    ),
    case(
        "bool",
        lambda: message([("greater", {"x": "@x", "y": np.float16(0)}, {"y": ("bool", MAP)})]),
        lambda: truth(inside=True),
    ),
)
