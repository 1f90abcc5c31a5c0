"""What ops cost against numbers worked out by hand: FLOPs, bytes moved, and what a short last axis adds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from lint_cases import on
from lint_programs import HALF, WHOLE, builder, cache_write, conv, package, palette, scaled

from validation.lint.checking import lint
from validation.lint.cost import cost_of, padding_of
from validation.lint.report import shown
from validation.program.contents import Function, Op
from validation.program.reading import read_program

EIGHT = np.ones(8, HALF)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, HALF)


def function_of(build: Callable[[], Any], folder: Path) -> Function:
    (function,) = read_program(package(build(), folder)).functions
    return function


def only(build: Callable[[], Any], kind: str, folder: Path) -> Op:
    (op,) = [op for op in function_of(build, folder).ops if op.type == kind]
    return op


FLOPS = {
    # 2 · outputs (1·8·6·30) · inputs of one output (4·3·3)
    "conv": (on((1, 4, 8, 32))(lambda x: mb.conv(x=x, weight=ones(8, 4, 3, 3))), "conv", 2 * 8 * 6 * 30 * 36),
    "conv with a bias": (
        on((1, 4, 8, 32))(lambda x: mb.conv(x=x, weight=ones(8, 4, 1, 1), bias=EIGHT)), "conv",
        2 * 8 * 8 * 32 * 4 + 8 * 8 * 32,
    ),
    "conv by strides": (
        on((1, 4, 8, 32))(lambda x: mb.conv(x=x, weight=ones(8, 4, 2, 2), strides=[2, 2])), "conv",
        2 * 8 * 4 * 16 * 16,
    ),
    "conv by channel": (
        on((1, 4, 8, 32))(lambda x: mb.conv(x=x, weight=ones(4, 1, 3, 3), groups=4)), "conv", 2 * 4 * 6 * 30 * 9,
    ),
    # each number that comes in meets the weights of its channel: 8 outputs of 2×2
    "conv_transpose": (
        on((1, 4, 8, 32))(lambda x: mb.conv_transpose(x=x, weight=ones(4, 8, 2, 2), strides=[2, 2])),
        "conv_transpose", 2 * 4 * 8 * 32 * 8 * 4,
    ),
    "linear": (
        on((1, 5, 64))(lambda x: mb.linear(x=x, weight=ones(8, 64), bias=EIGHT)), "linear", 2 * 5 * 64 * 8 + 5 * 8,
    ),
    "matmul": (on((2, 3, 4, 64), (2, 3, 64, 32))(lambda a, b: mb.matmul(x=a, y=b)), "matmul", 2 * 6 * 4 * 64 * 32),
    "matmul, both turned": (
        on((2, 3, 64, 4), (2, 3, 32, 64))(lambda a, b: mb.matmul(x=a, y=b, transpose_x=True, transpose_y=True)),
        "matmul", 2 * 6 * 4 * 64 * 32,
    ),
    "matmul, heads repeated": (
        on((1, 6, 4, 64), (1, 1, 64, 32))(lambda a, b: mb.matmul(x=a, y=b)), "matmul", 2 * 6 * 4 * 64 * 32,
    ),
    # q·kᵀ, the scale, the mask, softmax (5), scores·v
    "attention": (
        on((1, 2, 4, 64), (1, 2, 16, 64), (1, 2, 16, 32), (1, 1, 4, 16))(
            lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m)
        ),
        "scaled_dot_product_attention", 2 * 2 * 4 * 16 * 64 + 7 * 2 * 4 * 16 + 2 * 2 * 4 * 16 * 32,
    ),
    "einsum": (
        on((1, 4, 2, 64), (1, 64, 2, 32))(lambda a, b: mb.einsum(values=(a, b), equation="bnhd,bdhm->bnhm")),
        "einsum", 2 * 4 * 2 * 64 * 32,
    ),
    "softmax": (on((1, 4, 32))(lambda x: mb.softmax(x=x, axis=-1)), "softmax", 5 * 4 * 32),
    "layer_norm": (
        on((1, 4, 8))(lambda x: mb.layer_norm(x=x, axes=[-1], gamma=EIGHT, beta=EIGHT)), "layer_norm", 7 * 4 * 8,
    ),
    "reduce_mean": (on((1, 4, 8, 32))(lambda x: mb.reduce_mean(x=x, axes=[2, 3])), "reduce_mean", 4 * 8 * 32),
    "avg_pool": (
        on((1, 4, 8, 32))(lambda x: mb.avg_pool(x=x, kernel_sizes=[2, 4], strides=[2, 4], pad_type="valid")),
        "avg_pool", 4 * 4 * 8 * 8,
    ),
    "exp": (on((1, 4, 8, 32))(lambda x: mb.exp(x=x)), "exp", 4 * 8 * 32),
    "transpose": (on((1, 4, 32))(lambda x: mb.transpose(x=x, perm=[0, 2, 1])), "transpose", 0),
    "reshape": (on((1, 4, 32))(lambda x: mb.reshape(x=x, shape=[1, 32, 4])), "reshape", 0),
    "whole numbers": (on(((1, 32), WHOLE))(lambda x: mb.add(x=x, y=x)), "add", 0),
}  # fmt: skip

# weights, read, written
MOVED = {
    "conv": (
        on((1, 4, 8, 32))(lambda x: mb.conv(x=x, weight=ones(8, 4, 1, 1), bias=EIGHT)), "conv",
        (2 * (8 * 4 + 8), 2 * 4 * 8 * 32, 2 * 8 * 8 * 32),
    ),
    # codes of half a byte and 16 values
    "4-bit palette": (
        on((1, 64, 8, 32))(lambda x: conv(x, kernel=(1, 1), weight=palette((64, 64, 1, 1)))), "conv",
        (64 * 64 // 2 + 2 * 16, 2 * 64 * 8 * 32, 2 * 64 * 8 * 32),
    ),
    # codes of a byte, a scale for each output
    "int8": (
        on((1, 64, 8, 32))(lambda x: conv(x, kernel=(1, 1), weight=scaled((64, 64, 1, 1), (64, 1, 1, 1)))), "conv",
        (64 * 64 + 2 * 64, 2 * 64 * 8 * 32, 2 * 64 * 8 * 32),
    ),
    "rows by index": (
        on(((4,), WHOLE))(lambda at: mb.gather(x=ones(576, 64), indices=at, axis=0)), "gather",
        (0, 2 * 4 * 64 + 4 * 4, 2 * 4 * 64),
    ),
    "a cut": (
        on((1, 4, 32))(lambda x: mb.slice_by_index(x=x, begin=[0, 1, 0], end=[1, 2, 32])), "slice_by_index",
        (0, 2 * 32, 2 * 32),
    ),
    "one value twice": (on((1, 32))(lambda x: mb.add(x=x, y=x)), "add", (0, 64, 64)),
    "a transpose": (
        on((1, 4, 32))(lambda x: mb.transpose(x=x, perm=[0, 2, 1])), "transpose", (0, 2 * 4 * 32, 2 * 4 * 32),
    ),
    "a reshape": (on((1, 4, 32))(lambda x: mb.reshape(x=x, shape=[1, 32, 4])), "reshape", (0, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOPS)
def test_flops(name: str, tmp_path: Path) -> None:
    build, kind, expected = FLOPS[name]
    assert cost_of(only(build, kind, tmp_path)).flops == expected


@pytest.mark.parametrize("name", MOVED)
def test_bytes(name: str, tmp_path: Path) -> None:
    build, kind, expected = MOVED[name]
    cost = cost_of(only(build, kind, tmp_path))
    assert (cost.weights, cost.read, cost.written) == expected
    assert cost.bytes == sum(expected)


def test_a_write_into_a_state_moves_what_is_written(tmp_path: Path) -> None:
    build = on((1, 2, 1, 32))(lambda x: mb.relu(x=x))
    assert cost_of(only(build, "relu", tmp_path / "plain")).bytes == 2 * 2 * 64
    from lint_cases import with_state

    function = function_of(with_state(lambda x, s: cache_write(x, s)), tmp_path)
    costs = {op.type: cost_of(op).bytes for op in function.ops if op.type != "relu"}
    assert costs.pop("slice_update") == 2 * 2 * 32 * 2  # read and written: two rows of 32 in fp16, not the whole state
    assert set(costs.values()) == {0}


@pytest.mark.parametrize(
    ("shape", "extra"),
    [
        ((1, 64, 8, 32), 0),  # 64 bytes
        ((1, 64, 8, 48), 2 * 64 * 8 * 32),  # 96 bytes in 128
        ((1, 64, 8, 8), 2 * 64 * 8 * 48),  # 16 bytes in 64, read and written
        ((1, 896, 1, 1), 2 * 896 * 62),  # one row of a step: 2 bytes in 64
        ((1, 1, 1, 896), 0),
    ],
)
def test_padding(shape: tuple[int, ...], extra: int, tmp_path: Path) -> None:
    build = on(shape)(lambda x: mb.relu(x=x))
    assert padding_of(only(build, "relu", tmp_path)) == extra
    (function,) = lint(package(build(), tmp_path, "Again")).functions
    assert sum(group.extra_bytes for group in function.groups if group.rule == "last-axis") == extra


def test_shares_are_sums_over_ops(tmp_path: Path) -> None:
    """A prod leaves and does as much as relu: half of the work stays; bytes: 64 + 64 of relu, 64 + 2 of prod."""

    def body(x: Any) -> Any:
        return mb.reduce_prod(x=mb.relu(x=x), axes=[1])

    (function,) = lint(package(on((1, 32))(body)(), tmp_path)).functions
    assert (function.flops.total, function.flops.leaving) == (64, 32)
    assert function.flops.percent == 50
    assert (function.bytes.total, function.bytes.leaving) == (194, 66)
    assert [(op.op, op.flops, op.bytes) for op in function.leaving] == [("reduce_prod", 32, 66)]


def test_a_share_is_100_only_where_nothing_is_missing(tmp_path: Path) -> None:
    """4 of 17 billion operations leave: rounded to six digits that is 100 %, and it is not said."""

    def body(x0: Any) -> Any:
        product = mb.matmul(x=x0, y=np.ones((4096, 4096), HALF))
        return mb.cumsum(x=mb.slice_by_size(x=product, begin=[0, 0], size=[1, 4]), axis=1)

    report = lint(package(builder(body, [((512, 4096), HALF)]), tmp_path))
    assert 99.9999 < report.resident_percent < 100
    content = report.as_json()
    assert content["resident_percent"] == content["totals"][0]["flops"]["resident_percent"] == 99.9999
    assert shown(100.0) == 100


def test_a_function_without_work_is_judged_by_what_it_moves(tmp_path: Path) -> None:
    """A lookup does no FLOP; where all of it leaves nothing stays."""
    report = lint(package(builder(lambda x0: mb.gather(x=x0, indices=np.array([1, 2], np.int32), axis=1)), tmp_path))
    assert len(report.functions[0].leaving) == 1
    assert report.resident_percent == 0
