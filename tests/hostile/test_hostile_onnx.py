"""Damaged and hostile ONNX files: whatever the model or its data become, this process lives on with a named error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stranger_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import changed_json
from onnx import ModelProto, TensorProto, helper
from ordeal import LONG, in_lines, size, tally, try_all
from stranger_onnx import PROBER, OnnxOriginal, onnx_cases, ran, write_many_ops

from export.onnx.graph import IR_VERSION, OPSET
from fastvlm.build import FORMATS, read_build
from fastvlm.errors import ExecutionError, FastVLMError, PackageError
from fastvlm.manifest import read_manifest
from fastvlm_ref.checkpoint import load_checkpoint
from validation import children
from validation.children import Limits
from validation.ort import probing
from validation.ort.probing import Prober

sys.path.insert(0, str(Path(__file__).parents[1] / "ort"))
from onnx_builds import write_build

ROW = "damaged packages / ONNX: ONNX"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of ONNX files of the embedded checkpoint."""
    return write_build(load_checkpoint("tiny"), tmp_path_factory.mktemp("onnx") / "build")


@pytest.fixture(scope="module")
def whole(build: Path, tmp_path_factory: pytest.TempPathFactory) -> list[OnnxOriginal]:
    """The models that are changed, each run once."""
    many = write_many_ops(tmp_path_factory.mktemp("many") / "model")
    found = [OnnxOriginal(path) for path in (many, build / "VisionEncoder.onnx", build / "LanguageModel.onnx")]
    for each in found:
        ran(each.path)
    PROBER.close()
    return found


def test_damaged_onnx_files(whole: list[OnnxOriginal], tmp_path: Path) -> None:
    count = size(200, 3_000)
    outcomes = try_all(onnx_cases(whole, tmp_path, count))
    answered = sum(outcome.kind == "passed" for outcome in outcomes)
    bad = tally(ROW, outcomes, ran=answered)
    assert not bad, in_lines(bad)
    assert answered >= count // 15, "changes that leave nothing to run show little"


def without_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prober, "check", lambda *_: None)


def wide_kernel() -> dict[str, np.ndarray]:
    return CONSTANTS() | {"kernel": np.ones((2, 1, 3, 64), np.float32)}


CONSTANTS = stranger_onnx.constants


def test_a_load_that_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel larger than its padded picture: an assertion inside of onnxruntime."""
    monkeypatch.setattr(stranger_onnx, "constants", wide_kernel)
    path = write_many_ops(tmp_path / "model")
    with pytest.raises(ExecutionError, match=r"ends the process that loads it .*(SIGABRT|exit code)") as caught:
        ran(path)
    assert "\n" not in str(caught.value)
    PROBER.close()
    without_probe(monkeypatch)
    (outcome,) = try_all([("without the probe", lambda: ran(path))])
    assert outcome.kind == "signal", "without the probe the row is red"


def folded_products(path: Path, count: int = 30) -> Path:
    """Products of constants, one of the other, which are computed when they are loaded: seconds for each."""
    side = 4096
    held = [
        helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0]),
        helper.make_tensor("sides", TensorProto.INT64, [2], [side, side]),
    ]
    nodes = [helper.make_node("Expand", ["one", "sides"], ["p0"])]
    nodes += [helper.make_node("MatMul", [f"p{index}", "p0"], [f"p{index + 1}"]) for index in range(count)]
    nodes.append(helper.make_node("Gather", [f"p{count}", "row"], ["y"]))
    takes = [helper.make_tensor_value_info("row", TensorProto.INT64, [1])]
    gives = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, side])]
    graph = helper.make_graph(nodes, "g", takes, gives, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_load_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folded_products(tmp_path / "model.onnx")
    monkeypatch.setattr(probing, "LIMITS", Limits(seconds=3))
    with pytest.raises(ExecutionError, match=r"ends the process that loads it .*gave no answer within 3 s"):
        ran(path)
    PROBER.close()
    without_probe(monkeypatch)
    (outcome,) = try_all([("without the probe", lambda: ran(path))], seconds=3)
    assert outcome.kind == "timeout", "without the probe the row is red"


def many_heads(whole: list[OnnxOriginal], folder: Path) -> Path:
    model = ModelProto.FromString(whole[2].path.read_bytes())
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    next(attribute for attribute in node.attribute if attribute.name == "num_heads").i = 1 << 40
    path = folder / whole[2].path.name
    path.write_bytes(model.SerializeToString())
    path.with_name(path.name + ".data").write_bytes(whole[2].data_path.read_bytes())
    return path


def test_attributes_beyond_what_an_op_reads(
    whole: list[OnnxOriginal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut to 32 bits they become 0, which divides."""
    path = many_heads(whole, tmp_path)
    with pytest.raises(PackageError, match=r"beyond 32 bits .'num_heads'"):
        ran(path)
    monkeypatch.setattr("validation.ort.opening.LARGEST", 1 << 62)
    without_probe(monkeypatch)
    (outcome,) = try_all([("without the check", lambda: ran(path))])
    assert outcome.kind == "signal", "without the check the row is red"


def test_a_file_that_has_passed_is_not_loaded_twice(whole: list[OnnxOriginal], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(children.Child, "__init__", never)
    assert ran(whole[0].path)


READERS: tuple[Callable[[Path], Any], ...] = (read_manifest, lambda folder: read_build(folder, FORMATS))


@settings(max_examples=400 if LONG else 80)
@given(seed=st.randoms(use_true_random=False), text=st.none() | st.binary(max_size=200))
def test_any_manifest_of_a_build(build: Path, seed: Any, text: bytes | None) -> None:
    """A fuzzer of manifest.json: entries of no sense in a whole one, or bytes of its choice."""
    path = build / "manifest.json"
    before = path.read_bytes()
    path.write_bytes(changed_json(json.loads(before), seed) if text is None else text)
    try:
        for read in READERS:
            try:
                read(build)
            except FastVLMError:
                continue
    finally:
        path.write_bytes(before)
