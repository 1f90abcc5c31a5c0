"""A run gets the memory that is free and no more, in torch and in onnxruntime, and each is red without its limit."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from ordeal import Case, try_all
from package_cases import ran
from stranger_packages import Program, stored

from export.onnx.graph import IR_VERSION, OPSET
from validation import within_memory
from validation.mil import MILModel
from validation.ort.calls import Calls
from validation.ort.loading import load_here
from validation.ort.opening import open_file
from validation.ort.providers import CPU
from validation.ort.settings import Settings

ROOM, WANTED = 64 << 20, 192 << 20  # bytes that are said to be free, and that a case asks for


def filling(folder: Path) -> object:
    """One op of torch that fills WANTED bytes."""
    made = Program()
    shape = made.input("shape", "int32", (1,))
    filled = made.op("fill", "filled", "fp32", (WANTED // 4,), shape=shape, value=np.float32(1))
    made.give(made.op("reduce_sum", "y", "fp32", (1,), x=filled, axes=np.int32([0]), keep_dims=True))
    model = MILModel(made.write(folder / "fill.mlpackage"))
    return model.predict({"shape": np.int32([WANTED // 4])})


def keeping(folder: Path) -> object:
    """A state of WANTED bytes."""
    made = Program()
    made.state("kv", (WANTED // 2,))
    x = made.input("x", "fp16", (1,))
    made.give(made.op("identity", "y", "fp16", (1,), x=x))
    return MILModel(made.write(folder / "state.mlpackage")).make_state()


def session(folder: Path, folds: bool) -> Any:
    """A table of WANTED bytes, a column times a row: at its load where both are constants, else when it is called."""
    side = int((WANTED / 4) ** 0.5)
    column, row = (helper.make_tensor(name, TensorProto.FLOAT, [side], [1.0] * side) for name in ("column", "row"))
    column.dims[:] = [side, 1]
    takes = [helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1])]
    nodes = [
        helper.make_node("Mul", ["column", "row" if folds else "wide"], ["table"]),
        helper.make_node("Mul", ["row", "factor"], ["wide"]),
        helper.make_node("ReduceMax", ["table"], ["most"]),
        helper.make_node("Add", ["most", "factor"], ["y"]),
    ]
    gives = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])]
    graph = helper.make_graph(nodes if folds else [nodes[1], nodes[0], *nodes[2:]], "g", takes, gives, [column, row])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load_here(open_file(path), (CPU,), Settings(threads=1)).session


def calling(folder: Path) -> object:
    """A call of onnxruntime that computes WANTED bytes."""
    made = session(folder, False)
    return Calls()("the call", lambda options: made.run(None, {"factor": np.ones(1, np.float32)}, options))


def mapped(folder: Path) -> Path:
    """A package of a weight of WANTED bytes, which is mapped and takes none."""
    made = Program()
    x = made.input("x", "fp32", (1,))
    weight = stored(np.ones((1, WANTED // 4), np.float32))
    total = made.op("reduce_sum", "total", "fp32", (1,), x=weight, axes=np.int32([1]), keep_dims=False)
    made.give(made.op("add", "y", "fp32", (1,), x=x, y=total))
    return made.write(folder / "mapped.mlpackage")


RUNS: dict[Callable[[Path], object], tuple[str, str]] = {
    filling: ("validation.mil.model.within_memory", "op 'filled' (fill)"),
    keeping: ("validation.mil.state.within_memory", "state 'kv' of shape"),
    calling: ("validation.ort.calls.within_memory", "the call failed in onnxruntime"),
}


def run_case(run: Callable[[Path], object], folder: Path) -> list[Case]:
    def case() -> None:
        within_memory.free_bytes = lambda: ROOM
        run(folder)
        raise AssertionError("it was taken")

    return [(run.__name__, case)]


@pytest.mark.skipif(not within_memory.MEMORY.exists(), reason="no other system limits what a process takes")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_a_run_gets_what_is_free_and_no_more(
    run: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    limit, words = RUNS[run]
    (outcome,) = try_all(run_case(run, tmp_path / "with"))
    assert outcome.kind == "named", outcome
    assert words in outcome.detail
    monkeypatch.setattr(limit, nullcontext)
    (outcome,) = try_all(run_case(run, tmp_path / "without"))
    assert "it was taken" in outcome.detail, f"red with the limit, and without it: {outcome}"


@pytest.mark.skipif(not within_memory.MEMORY.exists(), reason="no other system limits what a process takes")
def test_what_is_mapped_needs_its_own_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mapped(tmp_path)
    (outcome,) = try_all(run_case(ran, package))
    assert "it was taken" in outcome.detail, outcome
    monkeypatch.setattr("validation.mil.blob.expect_mapped", lambda _: None)
    (outcome,) = try_all(run_case(ran, package))
    assert outcome.kind == "named", outcome


def taken(folder: Path) -> None:
    """A load of onnxruntime that computes WANTED bytes; AssertionError where it takes more than is free."""
    within_memory.free_bytes = lambda: ROOM
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session(folder, True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 2 * ROOM, f"it took {grown >> 20} MiB"


@pytest.mark.skipif(not within_memory.MEMORY.exists(), reason="no other system limits what a process takes")
def test_a_load_computes_no_more_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime leaves to the call, where it is named, what it could not compute when it loads."""
    (outcome,) = try_all([("with the limit", lambda: taken(tmp_path))])
    assert outcome.kind == "passed", outcome
    monkeypatch.setattr("validation.ort.loading.within_memory", nullcontext)
    (outcome,) = try_all([("without it", lambda: taken(tmp_path))])
    assert "it took " in outcome.detail, outcome
