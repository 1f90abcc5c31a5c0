"""Precision "fp16-accumulate": what adds up overflows where fp16 sums do, and is close to the truth below that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mil_messages import one_op
from test_mil_numeric import blocks_of_32

from validation.mil.ops import blocked
from validation.mil.registry import OPS

HALF = np.float16
LARGEST = 65504

# Every op that adds up terms without bound and has a pessimistic form; docs/mil-runtime.md names the others.
PRODUCTS = {"linear", "matmul", "conv", "scaled_dot_product_attention"}
REDUCTIONS = {
    f"reduce_{name}" for name in ("sum", "mean", "sum_square", "l1_norm", "l2_norm", "log_sum", "log_sum_exp")
}
NORMS = {"layer_norm", "instance_norm", "l2_norm", "local_response_norm", "softmax", "avg_pool", "l2_pool"}


def test_what_has_a_pessimistic_form() -> None:
    assert {name for name, op in OPS.items() if op.blocked is not None} == PRODUCTS | REDUCTIONS | NORMS


def numbers(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(HALF)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(0,), (1,), (-1, 0), (0, 1, 2), ()])
def test_a_total_is_its_definition(axes: tuple[int, ...], keep: bool) -> None:
    x = numbers(3, 41, 70, scale=3)
    over = sorted(axis % 3 for axis in axes) or [0, 1, 2]
    kept = [axis for axis in range(3) if axis not in over]
    rows = x.transpose(*kept, *over).reshape(*[x.shape[axis] for axis in kept], -1)
    want = blocks_of_32(rows.astype(np.float32))
    got = blocked.total(torch.from_numpy(x).float(), axes, keep)
    assert got.dtype == torch.float32
    assert tuple(got.shape) == np.sum(x, tuple(over), keepdims=keep).shape
    # float32 sums of a block may differ in their last place, which may tip its rounding.
    np.testing.assert_allclose(got.numpy().reshape(want.shape), want, rtol=2**-8, atol=2**-8)
    once = rows.sum(-1, dtype=np.float64).astype(HALF)
    assert np.array_equal(got.numpy().reshape(want.shape), once) == (rows.shape[-1] <= 32)


def test_terms_are_rounded_before_they_are_added() -> None:
    assert blocked.total(torch.tensor([2049.0, -2048.0]), [0]) == 0
    assert blocked.total(torch.zeros(0, 3), [0]).tolist() == [0, 0, 0]
    assert blocked.total(torch.tensor(5.0), []) == 5


def test_blocks_are_added_in_fp16() -> None:
    x = torch.cat((torch.tensor([2048.0]), torch.zeros(31), torch.ones(32) / 32))
    assert blocked.total(x, [0]) == 2048, "2049 is not an fp16 number; in float32 it would be"
    assert blocked.total(torch.cat((torch.tensor([2048.0]), torch.ones(31))), [0]) == 2079 + 1, "one block: float32"


def steps(x: np.ndarray, axis: int, epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) as plain fp16 ops compute it, one after another."""

    def mean(terms: np.ndarray) -> np.ndarray:
        sums = blocks_of_32(np.moveaxis(terms, axis, -1).astype(np.float32))
        return np.expand_dims((sums.astype(np.float32) / x.shape[axis]).astype(HALF), axis)

    centred = x - mean(x)
    scale = 1 / np.sqrt((mean(centred * centred) + HALF(epsilon)).astype(np.float32))
    return centred * scale.astype(HALF)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_norm_is_its_steps_in_fp16(axis: int) -> None:
    x = numbers(2, 96, 80)
    gain, bias = numbers(x.shape[axis]), numbers(x.shape[axis])
    shape = [-1 if place == axis else 1 for place in range(3)]
    options = {"axes": np.int32([axis]), "epsilon": HALF(1e-3)}
    got = one_op("layer_norm", {"x": (x,), **options}, "fp16", "fp16-accumulate")
    np.testing.assert_allclose(got, steps(x, axis, 1e-3), rtol=4e-3, atol=4e-3)
    got = one_op("layer_norm", {"x": (x,), **options, "gamma": gain, "beta": bias}, "fp16", "fp16-accumulate")
    want = steps(x, axis, 1e-3) * gain.reshape(shape) + bias.reshape(shape)
    np.testing.assert_allclose(got, want, rtol=4e-3, atol=8e-3)
    once = one_op("layer_norm", {"x": (x,), **options}, "fp16", "fp16")
    assert np.abs(got - once).max() > 0


def constant(*shape: int) -> np.ndarray:
    return np.ones(shape, HALF)


def alternating(*shape: int) -> np.ndarray:
    return np.where(np.arange(np.prod(shape)) % 2, 1, -1).reshape(shape).astype(HALF)


SUM, POOL = {"axes": np.int32([1])}, {"kernel_sizes": np.int32([8, 8]), "pad_type": "valid"}
# Op, its options, its argument but for a factor, the largest factor that its sums hold, one that they do not, and
# what comes out beyond. Bounds: 64 x 1,023 < 65,504; 255 x 255 < 65,504; 64 x 31.9 x 31.9 < 65,504.
BOUNDS: dict[str, tuple[dict[str, Any], np.ndarray, float, float, float]] = {
    "reduce_sum": (SUM, constant(2, 64), 1023, 1024, np.inf),
    "reduce_l1_norm": (SUM, alternating(2, 64), 1023, 1024, np.inf),
    "reduce_mean": (SUM, constant(2, 64), 1023, 1024, np.inf),
    "reduce_log_sum": (SUM, constant(2, 64), 1023, 1024, np.inf),
    "reduce_sum_square": (SUM, alternating(2, 64), 31.9, 33, np.inf),
    "reduce_l2_norm": (SUM, alternating(2, 64), 31.9, 33, np.inf),
    "reduce_log_sum_exp": (SUM, constant(1, LARGEST - 32), 1, np.nan, np.inf),
    "layer_norm": (SUM, alternating(2, 64), 31.9, 33, 0),
    "instance_norm": ({}, alternating(1, 2, 8, 8), 31.9, 33, 0),
    "l2_norm": ({}, alternating(2, 1, 8, 8), 31.9, 33, 0),
    "local_response_norm": ({"size": np.int32(1)}, alternating(1, 3, 4, 4), 255, 257, 0),
    "softmax": ({"axis": np.int32(0)}, constant(LARGEST - 32, 1), 1, np.nan, 0),
    "avg_pool": (POOL, constant(1, 2, 8, 16), 1023, 1024, np.inf),
    "l2_pool": (POOL, alternating(1, 2, 8, 16), 31.9, 33, np.inf),
}


def test_every_sum_has_a_bound() -> None:
    assert set(BOUNDS) == REDUCTIONS | NORMS


def three_ways(name: str, x: np.ndarray, options: dict[str, Any]) -> list[np.ndarray]:
    return [one_op(name, {"x": (x,), **options}, "fp16", way) for way in ("fp16-accumulate", "fp16", "fp32")]


@pytest.mark.parametrize("name", list(BOUNDS))
def test_below_its_bound_a_sum_is_close(name: str) -> None:
    options, x, most, _, _ = BOUNDS[name]
    pessimistic, _, exact = three_ways(name, x * HALF(most), options)
    assert np.isfinite(pessimistic).all()
    np.testing.assert_allclose(pessimistic, exact, rtol=2e-3, atol=1e-6)
    few = [min(length, 2048) for length in x.shape]
    drawn = np.resize(numbers(1024), few) * HALF(most / 8)
    pessimistic, _, exact = three_ways(name, np.abs(drawn) if name == "reduce_log_sum" else drawn, options)
    error = np.sqrt(((pessimistic - exact) ** 2).mean() / (exact**2).mean())
    assert error < 2e-3, error  # measured: at most 6.3e-4 (reduce_sum); rounding once gives 2.8e-4


@pytest.mark.parametrize("name", list(BOUNDS))
def test_beyond_its_bound_a_sum_overflows(name: str) -> None:
    options, x, _, beyond, left = BOUNDS[name]
    many = np.isnan(beyond)  # then it is the number of terms that is too large, each of them 1
    axis = int(np.argmax(x.shape))
    x = np.concatenate((x, x), axis) if many else x * HALF(beyond)
    pessimistic, once, exact = three_ways(name, x, options)
    assert (pessimistic == left).all()
    result_fits = np.abs(exact).max() < LARGEST
    assert result_fits == (name not in ("reduce_sum", "reduce_l1_norm", "reduce_sum_square"))
    if result_fits:
        np.testing.assert_allclose(once, exact, rtol=1e-3, atol=1e-7)


def test_a_sum_that_would_cancel_overflows_on_the_way() -> None:
    x = np.concatenate((np.full(64, 1024, HALF), np.full(64, -1024, HALF)))
    pessimistic, once, _ = three_ways("reduce_sum", x, {})
    assert once == 0
    assert not np.isfinite(pessimistic).any()


def test_padding_of_an_average_counts_as_it_does_elsewhere() -> None:
    x = numbers(1, 2, 7, 7)
    shape = {"kernel_sizes": np.int32([3, 3]), "strides": np.int32([2, 2]), "pad_type": "custom"}
    shape |= {"pad": np.int32([1, 1, 1, 1])}
    for exclude in (True, False):
        for ceil in (True, False):
            flags = {"exclude_padding_from_average": np.bool_(exclude), "ceil_mode": np.bool_(ceil)}
            pessimistic, once, _ = three_ways("avg_pool", x, {**shape, **flags})
            np.testing.assert_allclose(pessimistic, once, atol=2e-3)
            assert np.abs(once).max() > 0.5


def test_attention_sums_its_powers_in_fp16() -> None:
    query, key = np.zeros((1, 1, 8), HALF), np.zeros((1, LARGEST + 64, 8), HALF)
    value = np.ones((1, LARGEST + 64, 1), HALF)
    given = {"query": (query,), "key": (key,), "value": (value,)}
    pessimistic, once = (
        one_op("scaled_dot_product_attention", given, "fp16", way) for way in ("fp16-accumulate", "fp16")
    )
    assert pessimistic == 0
    np.testing.assert_allclose(once, 1, rtol=2e-3)
