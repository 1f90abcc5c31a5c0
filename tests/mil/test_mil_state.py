"""Stateful and multifunction packages: the cache behaves as in torch, and updates happen in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mil_programs import Cache, cache_package

from fastvlm.errors import ExecutionError, PackageError
from validation.mil import MILModel


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cache_package(tmp_path_factory.mktemp("cache"))


def mask(rows: int, position: int, length: int = 32) -> np.ndarray:
    visible = np.arange(length)[None] <= position + np.arange(rows)[:, None]
    return np.where(visible, 0, -1e4).astype(np.float16)[None, None]


def reference() -> Cache:
    torch.manual_seed(0)
    return Cache()


def test_prefill_then_decode_equals_torch(package: Path) -> None:
    prefill, decode = MILModel(package, "prefill"), MILModel(package)
    assert decode.function_name == "decode"
    state, module = prefill.make_state(), reference()
    x = np.random.default_rng(0).standard_normal((1, 10, 16)).astype(np.float16)
    for start, rows, model in ((0, 4, prefill), (4, 4, prefill), (8, 1, decode), (9, 1, decode)):
        part = x[:, start : start + rows]
        inputs = {"x": part, "mask": mask(rows, start), "position": np.array([start], np.int32)}
        got = model.predict(inputs, state)["y"]
        with torch.no_grad():
            want = module(torch.from_numpy(part), torch.from_numpy(inputs["mask"]), torch.tensor([start]))
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float32), want.float().numpy(), atol=2e-3)
    np.testing.assert_allclose(state.read_state("kv"), module.kv.numpy(), atol=1e-3)
    assert not state.read_state("kv")[..., 10:, :].any()


def test_cache_updates_are_in_place(package: Path) -> None:
    model = MILModel(package)
    assert [step.function is step.inplace for step in model.plan.body.steps if step.type == "slice_update"] == [
        True
    ] * 2
    state = model.make_state()
    before = state.boxes["kv"].tensor.data_ptr()
    model.predict({"x": np.ones((1, 1, 16)), "mask": mask(1, 0), "position": np.array([0])}, state)
    assert state.boxes["kv"].tensor.data_ptr() == before


def test_two_conversations_do_not_meet(package: Path) -> None:
    model = MILModel(package)
    first, second = model.make_state(), model.make_state()
    model.predict({"x": np.ones((1, 1, 16)), "mask": mask(1, 0), "position": np.array([0])}, first)
    assert first.read_state("kv").any()
    assert not second.read_state("kv").any()


def test_write_state_replaces_what_is_read(package: Path) -> None:
    state = MILModel(package).make_state()
    value = np.random.default_rng(1).standard_normal((2, 1, 2, 32, 8)).astype(np.float16)
    state.write_state("kv", value)
    np.testing.assert_array_equal(state.read_state("kv"), value)
    with pytest.raises(ExecutionError, match="no state 'other'"):
        state.read_state("other")
    with pytest.raises(ExecutionError, match="shape"):
        state.write_state("kv", value[:1])


def test_update_out_of_range_is_named(package: Path) -> None:
    prefill = MILModel(package, "prefill")
    inputs = {"x": np.ones((1, 4, 16)), "mask": mask(4, 0), "position": np.array([30])}
    with pytest.raises(ExecutionError, match="slice_update"):
        prefill.predict(inputs, prefill.make_state())
    inputs["position"] = np.array([32])
    with pytest.raises(ExecutionError, match="slice_update"):
        prefill.predict(inputs, prefill.make_state())


def test_state_is_checked(package: Path) -> None:
    model = MILModel(package)
    inputs = {"x": np.ones((1, 1, 16)), "mask": mask(1, 0), "position": np.array([0])}
    with pytest.raises(ExecutionError, match="make_state"):
        model.predict(inputs)
    with pytest.raises(ExecutionError, match="made by another model"):
        model.predict(inputs, MILModel(package, precision="fp32").make_state())
    with pytest.raises(ExecutionError, match="dict given"):
        model.predict(inputs, {})  # type: ignore[arg-type]


def test_functions_share_weights(package: Path) -> None:
    prefill = MILModel(package, "prefill")
    decode = prefill.function("decode")
    assert decode.package is prefill.package
    with pytest.raises(PackageError, match="decode, prefill"):
        MILModel(package, "encode")
