"""Compressed constants computed from one another: told apart by their bytes, computed once, not kept."""

from __future__ import annotations

import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_messages import _declare, _fill, add_op, empty_program, give

from fastvlm.errors import PackageError
from validation.mil import MILModel, compressed
from validation.mil.ops import constexpr as constexpr_ops

SCALE = "constexpr_blockwise_shift_scale"


def constexpr(block: Any, kind: str, results: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Appends a constexpr op; results: name -> an array of its type and shape; arguments: values or @names."""
    operation = block.operations.add(type=kind)
    _fill(operation.attributes["name"], next(iter(results)))
    for name, value in arguments.items():
        binding = operation.inputs[name].arguments.add()
        if isinstance(value, str):
            binding.name = value[1:]
        else:
            _fill(binding.value, value)
    for name, example in results.items():
        dtype = {"float32": "fp32", "float16": "fp16"}.get(example.dtype.name, example.dtype.name)
        _declare(operation.outputs.add(name=name).type, dtype, example.shape)


def stored(block: Any, name: str, shape: tuple[int, ...]) -> None:
    operation = block.operations.add(type="const")
    _fill(operation.attributes["name"], name)
    value = operation.attributes["val"]
    _declare(value.type, "int8", shape)
    value.blobFileValue.fileName, value.blobFileValue.offset = "@model_path/weights/weight.bin", 64
    _declare(operation.outputs.add(name=name).type, "int8", shape)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The folder of a weight file with 1,100 ones of int8 at 64."""
    header = np.array([1, 2], "<u4").tobytes() + bytes(56)
    metadata = np.array([0xDEADBEEF, 4], "<u4").tobytes() + np.array([1100, 128], "<u8").tobytes()
    (tmp_path / "weight.bin").write_bytes(header + metadata.ljust(64, b"\0") + np.ones(1100, np.int8).tobytes())
    return tmp_path


def scaled(scales: list[np.ndarray], weights: Path, nested: bool = False) -> list[np.ndarray]:
    """The stored ones times each of the scales, as results of one program."""
    ones = np.zeros((1100, 1), np.float32)
    spec, block = empty_program({"x": ones})
    stored(block, "d", ones.shape)
    for index, scale in enumerate(scales):
        argument: Any = scale
        if nested:
            argument = f"@q{index}"
            factors = {"data": np.ones(scale.shape, np.int8), "scale": scale}
            constexpr(block, SCALE, {f"q{index}": scale}, factors)
        constexpr(block, SCALE, {f"w{index}": ones.astype(scale.dtype)}, {"data": "@d", "scale": argument})
        add_op(block, "add", {f"y{index}": "fp32"}, {"x": "@x", "y": f"@w{index}"})
    give(spec, block, [f"y{index}" for index in range(len(scales))])
    return list(MILModel(spec, precision="fp32", weights=weights).predict({"x": ones}).values())


def differing() -> np.ndarray:
    other = np.ones((1100, 1), np.float32)
    other[501] = 7
    return other


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "scales",
    [
        [np.ones((1100, 1), np.float32), differing()],
        [np.full((1, 1), 0.001234561, np.float32), np.full((1, 1), 0.001234564, np.float32)],
        [np.full((1, 1), 2, np.float32), np.full((1, 1), 5, np.float32)],
        [np.full((1, 1), 1 / 3, np.float32), np.full((1, 1), 1 / 3, np.float16)],
    ],
    ids=["beyond 1,000", "last digits", "plain", "element type"],
)
def test_what_differs_in_one_bit_is_told_apart(scales: list[np.ndarray], nested: bool, weights: Path) -> None:
    for got, scale in zip(scaled(scales, weights, nested), scales, strict=True):
        np.testing.assert_array_equal(got, np.broadcast_to(scale, got.shape))


def test_equal_computations_of_stored_values_are_shared_between_functions(weights: Path) -> None:
    x = np.zeros((1100, 1), np.float32)
    spec, block = empty_program({"x": x})
    stored(block, "d", x.shape)
    inner = {"data": np.ones((1, 1), np.int8), "scale": np.full((1, 1), 3, np.float32)}
    constexpr(block, SCALE, {"q": np.zeros((1, 1), np.float32)}, inner)
    constexpr(block, SCALE, {"w": x}, {"data": "@d", "scale": "@q"})
    add_op(block, "identity", {"y": "fp32"}, {"x": "@x"})
    give(spec, block, ["w"])
    spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["main"])
    model = MILModel(spec, weights=weights)
    one, two = (each.predict_tensors({"x": x})["w"] for each in (model, model.function("other")))
    assert one.data_ptr() == two.data_ptr()
    assert one.mean() == 3


def results_of_stored_values(weights: Path, kind: str, examples: list[np.ndarray], scale: np.ndarray) -> list[Any]:
    """What a program returns that computes each of the examples' types from the same stored ones and scale."""
    ones = np.zeros(1, np.float32)
    spec, block = empty_program({"x": ones})
    stored(block, "d", (1100, 1) if scale.ndim == 2 else (1100,))
    if kind == SCALE:
        for index, example in enumerate(examples):
            constexpr(block, kind, {f"w{index}": example}, {"data": "@d", "scale": scale})
    else:
        both = {f"w{index}": example for index, example in enumerate(examples)}
        constexpr(block, kind, both, {"data_mask": "@d", "nonzero_data": np.ones(1100, np.int8), "scale": scale})
    add_op(block, "identity", {"y": "fp32"}, {"x": "@x"})
    give(spec, block, [f"w{index}" for index in range(len(examples))])
    return list(MILModel(spec, weights=weights).predict_tensors({"x": ones}).values())


def test_declared_types_and_results_are_told_apart(weights: Path) -> None:
    third, shape = np.full((1, 1), 1 / 3, np.float32), (1100, 1)
    half, single = results_of_stored_values(
        weights, SCALE, [np.zeros(shape, np.float16), np.zeros(shape, np.float32)], third
    )
    assert (half.dtype, single.dtype) == (torch.float16, torch.float32)
    assert single[0, 0] == np.float32(1 / 3)
    kind, byte = "constexpr_sparse_blockwise_shift_scale", np.zeros(1100, np.int8)
    mask, values = results_of_stored_values(weights, kind, [byte, byte], np.float32([2]))
    assert (mask[0], values[0]) == (1, 2)
    with pytest.raises(PackageError, match=r"gives shape \[1100, 1\], declared is fp32\[1, 1100\]"):
        results_of_stored_values(weights, SCALE, [np.zeros(shape, np.float32), np.zeros((1, 1100), np.float32)], third)


def evaluations(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts from now on how often each op's function is called, by the op's title."""
    counted: Counter[str] = Counter()
    compute = compressed.Evaluation._compute

    def counting(self: Any) -> Any:
        counted[self.title] += 1
        return compute(self)

    monkeypatch.setattr(compressed.Evaluation, "_compute", counting)
    return counted


def chain(length: int, both: bool) -> MILModel:
    """w0 = 1, w(i) = w(i - 1), or its square: one constexpr op each."""
    one = np.ones(1, np.float32)
    spec, block = empty_program({"x": one})
    for index in range(length):
        before: Any = f"@w{index - 1}" if index else one
        constexpr(block, SCALE, {f"w{index}": one}, {"data": before, "scale": before if both else one})
    add_op(block, "add", {"y": "fp32"}, {"x": "@x", "y": f"@w{length - 1}"})
    give(spec, block, ["y"])
    return MILModel(spec)


def test_a_result_used_twice_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = evaluations(monkeypatch)
    model = chain(30, both=True)
    start = time.perf_counter()
    assert model.predict({"x": np.ones(1)})["y"][0] == 2
    assert time.perf_counter() - start < 2
    assert set(counted.values()) == {1}
    assert len(counted) == 30


@pytest.mark.parametrize("length", [101, 3000])
def test_a_chain_too_deep_is_named(length: int) -> None:
    with pytest.raises(PackageError, match=r"'w100'.*101 constexpr ops .* at most 100"):
        chain(length, both=False)


def test_a_chain_just_deep_enough() -> None:
    assert chain(100, both=False).predict({"x": np.ones(1)})["y"][0] == 2


def joint() -> MILModel:
    """A mask and values from one op, both used by the next; its result by two ops, all of them in one program."""
    dense = np.zeros(4, np.float32)
    spec, block = empty_program({"x": dense})
    constexpr(
        block,
        "constexpr_lut_to_sparse",
        {"m": np.zeros(4, np.uint8), "v": np.zeros(4, np.float32)},
        {
            "indices_mask": np.ones(4, np.uint8),
            "indices_nonzero_data": np.uint8([0, 1, 1, 0]),
            "lut": np.float32([[[1.0], [2.0]]]),
        },
    )
    constexpr(block, "constexpr_sparse_to_dense", {"w": dense}, {"nonzero_data": "@v", "mask": "@m"})
    add_op(block, "add", {"a": "fp32"}, {"x": "@x", "y": "@w"})
    add_op(block, "gather", {"g": "fp32"}, {"x": "@w", "indices": np.int32([1, 2, 3, 0]), "axis": np.int32(0)})
    add_op(block, "mul", {"y": "fp32"}, {"x": "@a", "y": "@g"})
    give(spec, block, ["y"])
    return MILModel(spec)


def test_what_several_weights_are_computed_from_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = evaluations(monkeypatch)
    one = np.ones(1, np.float32)
    spec, block = empty_program({"x": one})
    constexpr(block, SCALE, {"inner": one}, {"data": one, "scale": one * 2})
    for index in range(3):
        constexpr(block, SCALE, {f"w{index}": one}, {"data": "@inner", "scale": one * index})
        add_op(block, "add", {f"y{index}": "fp32"}, {"x": "@x", "y": f"@w{index}"})
    give(spec, block, ["y0", "y1", "y2"])
    assert [value[0] for value in MILModel(spec).predict({"x": one}).values()] == [1, 3, 5]
    assert set(counted.values()) == {1}


def test_an_op_of_two_results_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = evaluations(monkeypatch)
    model = joint()
    for _ in range(2):
        assert model.predict({"x": np.zeros(4)})["y"].tolist() == [2, 4, 2, 1]
    assert sorted(counted.values()) == [1, 1]


def test_intermediate_values_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    compute = compressed.Evaluation._compute

    def watching(self: Any) -> Any:
        results = compute(self)
        made.extend(weakref.ref(value) for value in results if "sparse" in self.title.split()[0].split("_to_")[1])
        return results

    monkeypatch.setattr(compressed.Evaluation, "_compute", watching)
    model = joint()
    model.predict({"x": np.zeros(4)})
    assert len(made) == 2
    assert [value() for value in made] == [None, None]


def test_values_are_dropped_after_their_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three weights in a row: while one is decompressed, the others' intermediate values are gone."""
    inner: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []
    compute = compressed.Evaluation._compute

    def watching(self: Any) -> Any:
        results = compute(self)
        if "'inner" in self.title:
            inner.extend(weakref.ref(value) for value in results)
        alive.append(sum(value() is not None for value in inner))
        return results

    monkeypatch.setattr(compressed.Evaluation, "_compute", watching)
    one = np.ones(1, np.float32)
    spec, block = empty_program({"x": one})
    for index in range(3):
        constexpr(block, SCALE, {f"inner{index}": one}, {"data": one, "scale": one * index})
        constexpr(block, SCALE, {f"w{index}": one}, {"data": f"@inner{index}", "scale": one})
        add_op(block, "add", {f"y{index}": "fp32"}, {"x": "@x", "y": f"@w{index}"})
    give(spec, block, ["y0", "y1", "y2"])
    assert [value[0] for value in MILModel(spec).predict({"x": one}).values()] == [1, 2, 3]
    assert alive == [1] * 6
    assert [value() for value in inner] == [None] * 3


def test_a_failure_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = joint()
    compute = compressed.Evaluation._compute
    tries: list[Any] = []

    def failing(self: Any) -> Any:
        tries.append(self.title)
        results = compute(self)
        if "to_dense" in self.title:
            raise PackageError("planted")
        return results

    monkeypatch.setattr(compressed.Evaluation, "_compute", failing)
    for _ in range(2):
        with pytest.raises(PackageError, match="planted"):
            model.predict({"x": np.zeros(4)})
    assert len(tries) == 4
    monkeypatch.undo()
    assert model.predict({"x": np.zeros(4)})["y"].tolist() == [2, 4, 2, 1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": np.ones(4, np.int8), "scale": np.ones(0, np.float32)},
        {"data": np.ones(4, np.int8), "scale": "abc"},
        {"data": "abc", "scale": np.ones(1, np.float32)},
        {"data": np.ones(4, np.int8), "scale": np.ones((1, 1), np.float32)},
    ],
    ids=["no scale", "a string", "a string of data", "ranks"],
)
def test_faults_of_a_computation_are_named(arguments: dict[str, Any]) -> None:
    spec, block = empty_program({"x": np.ones(4, np.float32)})
    constexpr(block, SCALE, {"w": np.ones(4, np.float32)}, arguments)
    add_op(block, "add", {"y": "fp32"}, {"x": "@x", "y": "@w"})
    give(spec, block, ["y"])
    with pytest.raises(PackageError, match=f"{SCALE} 'w'.*damaged") as caught:
        MILModel(spec).predict({"x": np.ones(4)})
    assert "\n" not in str(caught.value)


def test_results_that_are_not_there_are_named() -> None:
    one = np.ones(1, np.float32)
    spec, block = empty_program({"x": one})
    constexpr(block, SCALE, {"w": one, "v": one}, {"data": one, "scale": one})
    add_op(block, "add", {"y": "fp32"}, {"x": "@x", "y": "@v"})
    give(spec, block, ["y"])
    with pytest.raises(PackageError, match="gives 1 of 2 results"):
        MILModel(spec).predict({"x": one})


@pytest.mark.parametrize(("shape", "groups", "width"), [((7, 12), (1, 4), 1), ((6, 4), (3, 1), 2), ((), (), 1)])
def test_a_palette_is_applied_in_runs_of_rows(
    shape: tuple[int, ...], groups: tuple[int, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many values are looked up at once, the result is the same."""
    numbers = np.random.default_rng(0)
    indices = numbers.integers(0, 4, shape).astype(np.uint8)
    lut = numbers.standard_normal((*groups, 4, width)).astype(np.float16)
    axis = 0 if width > 1 else None
    whole = constexpr_ops.constexpr_lut_to_dense(indices, lut, None, axis)
    monkeypatch.setattr(constexpr_ops, "MOST_AT_ONCE", 10)
    assert np.array_equal(constexpr_ops.constexpr_lut_to_dense(indices, lut, None, axis), whole)
    assert whole.shape == ((shape[0] * width, *shape[1:]) if shape else ())


def test_groups_that_do_not_divide_an_axis() -> None:
    data, scale = np.zeros((4, 6), np.int8), np.ones((4, 4), np.float16)
    with pytest.raises(ValueError, match="4 groups do not divide an axis of 6"):
        constexpr_ops.constexpr_blockwise_shift_scale(data, scale)
