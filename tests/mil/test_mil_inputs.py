"""What `predict` and states take: values that would silently become others are refused, in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mil_messages import _declare, add_op, empty_program, give

from fastvlm.errors import ExecutionError
from validation.mil import MILModel

PRECISIONS = ["fp16", "fp32"]


def model(dtype: Any = np.float32, precision: str = "fp32") -> MILModel:
    """y = relu(x), x and y of shape (2,)."""
    spec, block = empty_program({"x": np.ones(2, dtype)})
    add_op(block, "relu", {"y": np.dtype(dtype).name.replace("float", "fp")}, {"x": "@x"})
    give(spec, block, ["y"])
    return MILModel(spec, precision=precision)


def given(value: Any, dtype: Any = np.float32, precision: str = "fp32") -> list[float]:
    found: list[float] = model(dtype, precision).predict({"x": value})["y"].tolist()
    return found


def test_none_is_a_missing_input() -> None:
    with pytest.raises(ExecutionError, match=r"missing: x$"):
        given(None)


def test_none_stands_for_an_optional_input() -> None:
    spec, block = empty_program({"x": np.ones(2, np.float32)})
    spec.description.input[0].type.isOptional = True
    add_op(block, "cos", {"y": "fp32"}, {"x": "@x"})
    give(spec, block, ["y"])
    assert MILModel(spec).predict({"x": None})["y"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("value", "dtype", "precision", "message"),
    [
        (np.array([1e300, 1]), np.float32, "fp32", "1e[+]300 does not fit float32"),
        (np.array([1, -1e300]), np.float32, "fp16", "-1e[+]300 does not fit float32"),
        (np.array([70000.0, 1]), np.float16, "fp16", "70000.0 does not fit float16"),
        (np.array([1, 70000]), np.float16, "fp16", "70000 does not fit float16"),
        (np.float32([65520, 1]), np.float16, "fp16", "65520.0 does not fit float16"),
        (np.array([1e300, 1]), np.float16, "fp32", "1e[+]300 does not fit"),
    ],
)
def test_finite_numbers_do_not_become_infinite(value: Any, dtype: Any, precision: str, message: str) -> None:
    with pytest.raises(ExecutionError, match=message):
        given(value, dtype, precision)


def test_numbers_at_the_edge_pass() -> None:
    assert given(np.array([np.inf, 65519]), np.float16, "fp16") == [np.inf, 65504]
    assert given(np.array([70000.0, 2]), np.float16, "fp32") == [70000, 2]
    assert given(np.array([np.inf, 3e38])) == [np.inf, float(np.float32(3e38))]
    assert np.isnan(given(np.array([np.nan, 1]))[0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "no array"),
        (torch.ones(2, dtype=torch.bfloat16), "no array"),
        (torch.ones(2).to_sparse(), "no array"),
        (np.ones(2, complex), "complex128 given"),
        (["a", "b"], "given, expected fp32"),
        ([None, 1], "object given"),
        ([2**70, 1], "object given"),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), "given, expected fp32"),
        (np.ones(2, [("a", "f4")]), "given, expected fp32"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(value: Any, precision: str, message: str) -> None:
    with pytest.raises(ExecutionError, match=f"input 'x'.*{message}") as caught:
        given(value, precision=precision)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", [">f4", "<f8", ">f8", ">i4", "longdouble", "f2", "bool"])
def test_every_layout_of_numbers_is_taken(kind: str, dtype: Any, precision: str) -> None:
    assert given(np.array([0, 1]).astype(kind), dtype, precision) == [0, 1]


def test_a_tensor_that_needs_gradients_is_taken() -> None:
    assert given(torch.tensor([0.0, 2], requires_grad=True)) == [0, 2]


@pytest.mark.parametrize("data", [None, [1], "x", 3])
def test_data_is_a_mapping(data: Any) -> None:
    with pytest.raises(ExecutionError, match="takes a mapping"):
        model().predict(data)


def test_a_name_that_is_no_string() -> None:
    with pytest.raises(ExecutionError, match=r"unknown: 3, None$"):
        model().predict({"x": np.ones(2), 3: 1, None: 2})  # type: ignore[dict-item]


def test_a_ragged_picture() -> None:
    spec, block = empty_program({"x": np.ones((1, 3, 2, 2), np.float32)})
    image = spec.description.input[0].type.imageType
    image.width, image.height, image.colorSpace = 2, 2, 20
    add_op(block, "relu", {"y": "fp32"}, {"x": "@x"})
    give(spec, block, ["y"])
    with pytest.raises(ExecutionError, match=r"input 'x'.*no array"):
        MILModel(spec).predict({"x": [[1, 2], [3]]})


@pytest.fixture
def state() -> Any:
    spec, block = empty_program({"x": np.ones(1, np.float32)})
    item = spec.mlProgram.functions["main"].inputs.add(name="s")
    _declare(item.type.stateType.wrappedType, "fp16", (2,))
    add_op(block, "read_state", {"r": "fp16"}, {"input": "@s"})
    give(spec, block, ["r"])
    return MILModel(spec).make_state()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a", "b"]), "<U1 given"),
        ([[1], [1, 2]], "no array"),
        (np.array([1j, 2]), "complex128 given"),
        (np.array([1e300, 1]), "1e[+]300 does not fit float16"),
        ([1, 2, 3], r"shape \[3\] given, expected \[2\]"),
    ],
)
def test_what_a_state_cannot_hold_is_named(state: Any, value: Any, message: str) -> None:
    before = state.read_state("s")
    with pytest.raises(ExecutionError, match=f"state 's'.*{message}"):
        state.write_state("s", value)
    np.testing.assert_array_equal(state.read_state("s"), before)


@pytest.mark.parametrize("value", [[1, 2], torch.tensor([1.0, 2]), np.array([1, 2], ">f8"), np.float16([1, 2])])
def test_what_a_state_can_hold(state: Any, value: Any) -> None:
    state.write_state("s", value)
    assert state.read_state("s").tolist() == [1, 2]
    assert state.read_state("s").dtype == np.float16
