"""Weights of an ONNX model outside it and inside it, and what its last op's result is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.onnx.data import ALIGNMENT, DataFile
from export.onnx.graph import LARGE, Graph

VALUES = np.arange(LARGE, dtype=np.float32)


def add(graph: Graph, name: str, values: np.ndarray = VALUES) -> str:
    return graph.weight(name, TensorProto.FLOAT, values.shape, lambda: [values.tobytes()])


def test_two_models_share_a_weight(tmp_path: Path) -> None:
    with DataFile(tmp_path / "model.data") as data:
        for number in range(2):
            graph = Graph(f"model{number}", data)
            x = graph.input("x", TensorProto.FLOAT, VALUES.shape)
            total = graph.op(
                "Add", graph.op("Add", x, add(graph, "shared")), add(graph, f"own{number}", VALUES + number)
            )
            graph.output(total, "y", TensorProto.FLOAT, VALUES.shape)
            onnx.save(graph.model(("test", "0"), "", {}), tmp_path / f"{number}.onnx")
    assert (tmp_path / "model.data").stat().st_size == 2 * ALIGNMENT + VALUES.nbytes
    for number in range(2):
        model = onnx.load(tmp_path / f"{number}.onnx")
        found = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        assert np.array_equal(found["shared"], VALUES)
        assert np.array_equal(found[f"own{number}"], VALUES + number)


def test_wrong_length_is_a_fault_of_the_writer(tmp_path: Path) -> None:
    with (
        DataFile(tmp_path / "model.data") as data,
        pytest.raises(RuntimeError, match="8 bytes given for w, expected 12"),
    ):
        data.place("w", 12, lambda: [b"1234", b"5678"])


def test_without_a_data_file_weights_stay_inside() -> None:
    graph = Graph("model", None, opset=20)
    graph.output(graph.op("Relu", add(graph, "w")), "y", TensorProto.FLOAT, VALUES.shape)
    model = graph.model(("test", "0"), "", {})
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), VALUES)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]


def test_an_output_is_what_the_last_op_gives_or_is_passed_on() -> None:
    graph = Graph("model", None)
    x = graph.input("x", TensorProto.FLOAT, (1,))
    first = graph.op("Relu", x)
    graph.output(graph.op("Exp", first), "last", TensorProto.FLOAT, (1,))
    graph.output(first, "first", TensorProto.FLOAT, (1,))
    nodes = graph.model(("test", "0"), "", {}).graph.node
    assert [(node.op_type, list(node.output)) for node in nodes] == [
        ("Relu", ["/Relu"]), ("Exp", ["last"]), ("Identity", ["first"]),
    ]  # fmt: skip


def test_a_scalar_has_no_axes() -> None:
    """As Clip wants its limits."""
    graph = Graph("model", None)
    graph.constant(np.array(2.0, np.float32))
    assert [list(each.dims) for each in graph.model(("test", "0"), "", {}).graph.initializer] == [[]]
