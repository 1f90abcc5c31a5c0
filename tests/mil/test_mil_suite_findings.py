"""What coremltools' own tests, run by `benchmarks/coremltools_suite.py`, found: one test here per finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_messages import add_op, empty_program, give, one_op
from mil_programs import build

from fastvlm.errors import ExecutionError
from validation.mil import MILModel

FEW = settings(max_examples=30, deadline=None)


@FEW
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=4))
def test_concat_of_scalars_is_a_vector(values: list[int]) -> None:
    """Converted dynamic shapes are made this way: lengths gathered one by one, then joined."""
    given_values: Any = [(np.int32(value),) for value in values]
    np.testing.assert_array_equal(one_op("concat", {"values": given_values, "axis": np.int32(0)}), values)


@FEW
@given(st.integers(-50, 50), st.integers(-7, 7).filter(bool))
def test_division_of_integers_is_an_integer_cut_towards_zero(x: int, y: int) -> None:
    got = one_op("real_div", {"x": (np.int32([x]),), "y": (np.int32([y]),)})
    assert got.dtype == np.int32
    assert got[0] == int(x / y)


def test_quotient_of_integers_serves_as_a_length() -> None:
    spec, block = empty_program({"n": np.int32([6])})
    add_op(block, "real_div", {"reps": "int32"}, {"x": "@n", "y": np.int32([2])})
    add_op(block, "tile", {"out": "fp32"}, {"x": np.float32([1, 2]), "reps": "@reps"})
    give(spec, block, ["out"])
    assert MILModel(spec).predict({"n": np.int32([6])})["out"].tolist() == [1, 2] * 3


def test_a_value_may_be_returned_twice() -> None:
    spec, block = empty_program({"x": np.float32([1, -1])})
    add_op(block, "relu", {"y": "fp32"}, {"x": "@x"})
    block.outputs.extend(["y", "y"])
    spec.description.output.add(name="y").type.multiArrayType.SetInParent()
    assert MILModel(spec).predict({"x": np.float32([1, -1])})["y"].tolist() == [1, 0]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_scalar_leaves_in_shape_one(precision: str) -> None:
    options = {"x": (np.float32([1, 2]),), "axes": np.int32([0]), "keep_dims": False}
    assert one_op("reduce_sum", options, precision=precision).shape == (1,)


def test_hook_sees_the_ops_of_nested_blocks() -> None:
    def body(x0: Any) -> Any:
        def step(i: Any, value: Any) -> Any:
            return mb.add(x=i, y=1), mb.mul(x=value, y=np.float32(2))

        _, last = mb.while_loop(_cond=lambda i, value: mb.less(x=i, y=2), _body=step, loop_vars=(np.int32(0), x0))
        positive = mb.greater(x=mb.reduce_sum(x=x0, keep_dims=False), y=np.float32(0))
        return mb.cond(pred=positive, _true_fn=lambda: mb.exp(x=last), _false_fn=lambda: mb.relu(x=last))

    model = MILModel(build(body, [((2,), np.float32)]))
    x = np.float32([-1, 0.5])
    seen: list[str] = []
    hooked = model.predict({"x0": x}, hook=lambda name, kind, value: seen.append(kind))
    loop = ["less", "add", "mul", "less", "add", "mul", "less", "while_loop", "while_loop"]  # one call per result
    assert seen == [*loop, "reduce_sum", "greater", "relu", "cond"]
    (plain,) = model.predict({"x0": x}).values()
    np.testing.assert_array_equal(plain, next(iter(hooked.values())))


INDEXED = {
    "gather": {"indices": np.int32([0, -1])},
    "gather_along_axis": {"indices": np.int32([[0, -1]])},
    "gather_nd": {"indices": np.int32([[0, -1]])},
    "scatter": {"indices": np.int32([-1]), "updates": np.float32([[9, 9, 9]])},
    "scatter_along_axis": {"indices": np.int32([[0, -1, 1]]), "updates": np.float32([[9, 9, 9]])},
    "scatter_nd": {"indices": np.int32([[0, -1]]), "updates": np.float32([9])},
}


@pytest.mark.parametrize("kind", INDEXED)
def test_validated_indices_may_not_be_negative(kind: str) -> None:
    data = "data" if kind.startswith("scatter") else "x"
    arguments = {data: (np.float32([[1, 2, 3], [4, 5, 6]]),), **INDEXED[kind]}
    one_op(kind, {**arguments, "validate_indices": False})
    with pytest.raises(ExecutionError, match="index -1"):
        one_op(kind, {**arguments, "validate_indices": True})


@FEW
@given(st.data())
def test_reshape_counts_zeros_from_the_last_axis(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    places = data.draw(st.integers(len(shape), 5))
    rest = data.draw(st.integers(0, places - 1))
    target = [0] * places
    target[rest] = -1
    want = [1] * (places - len(shape)) + shape
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    got = one_op("reshape", {"x": (x,), "shape": np.int32(target)})
    np.testing.assert_array_equal(got, x.reshape(want))


def test_reshape_with_fewer_entries_than_axes() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    assert one_op("reshape", {"x": (x,), "shape": np.int32([-1, 0])}).shape == (6, 4)


def test_nearest_resize_takes_the_nearest_point_of_the_grid() -> None:
    """iOS17 resize in mode DEFAULT: points i * 2 / 3, not their floors."""
    options = {"shape": np.int32([3, 2]), "resized_dims": np.int32(2), "interpolation_mode": "NEAREST_NEIGHBOR"}
    x = np.float32([-6, 9]).reshape(1, 1, 2, 1)
    got = one_op("resize", {"x": (x,), **options, "sampling_mode": "DEFAULT"})
    assert got.reshape(3, 2).tolist() == [[-6, -6], [9, 9], [9, 9]]


@FEW
@given(st.integers(1, 9), st.floats(0.4, 4))
def test_nearest_upsample_recomputes_its_scale(length: int, scale: float) -> None:
    """1.12 makes three pixels of three: the same ones."""
    x = np.arange(length, dtype=np.float32).reshape(1, 1, length)
    scale = float(np.float32(scale))
    count = int(np.floor(length * scale))
    options = {"scale_factor_height": np.float32(1), "scale_factor_width": np.float32(scale)}
    got = one_op("upsample_nearest_neighbor", {"x": (x,), **options})
    assert got[0, 0].tolist() == [i * length // count for i in range(count)]


@pytest.mark.parametrize(
    ("size", "want"),
    [(2, [0.99996257, 4.99531746, -2.99898791]), (3, [0.99997497, 4.99687672, -2.99932504])],
)
def test_local_response_norm_of_rank_3(size: int, want: list[float]) -> None:
    """coremltools' own numbers: no neighbour counts, so the channels are not on axis 1."""
    x = np.float32([1, 5, -3]).reshape(1, 3, 1)
    got = one_op("local_response_norm", {"x": (x,), "size": np.int32(size)})
    np.testing.assert_allclose(got.reshape(-1), want, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_local_response_norm_of_images_is_torchs(size: int) -> None:
    x = np.random.default_rng(size).normal(scale=3, size=(2, 6, 3, 4)).astype(np.float32)
    options = {"size": np.int32(size), "alpha": np.float32(0.5), "beta": np.float32(0.7), "k": np.float32(1.5)}
    want = torch.nn.LocalResponseNorm(size, 0.5, 0.7, 1.5)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(one_op("local_response_norm", {"x": (x,), **options}), want, rtol=1e-5)


@pytest.mark.parametrize("weights", [np.float16, np.float32, np.int32])
@pytest.mark.parametrize("numbers", [np.float16, np.float32])
def test_linear_mixes_types(numbers: Any, weights: Any) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.integers(0, 10, shape) for shape in ((2, 1, 3), (4, 3), (4,)))
    arguments = {"x": (x.astype(numbers),), "weight": weight.astype(weights), "bias": bias.astype(weights)}
    got = one_op("linear", arguments, precision="fp16")
    assert got.dtype == numbers
    np.testing.assert_array_equal(got, x @ weight.T + bias)


def test_lstm_takes_the_first_rows_of_a_longer_state() -> None:
    rng = np.random.default_rng(0)
    x, state = rng.normal(size=(5, 2, 3)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    weights = {
        "weight_ih": rng.normal(size=(16, 3)).astype(np.float32),
        "weight_hh": rng.normal(size=(16, 4)).astype(np.float32),
    }
    options = {"x": (x,), **weights, "output_sequence": True}
    longer = one_op("lstm", {**options, "initial_h": state, "initial_c": state}, ["fp32"] * 3)
    exact = one_op("lstm", {**options, "initial_h": state[:2], "initial_c": state[:2]}, ["fp32"] * 3)
    for got, want in zip(longer, exact, strict=True):
        np.testing.assert_array_equal(got, want)
