"""Small ONNX models with their data, and what a stranger may make of them: a field, a byte, a place, the data."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mutations import changed_bytes, changed_message, names_in
from onnx import ModelProto, TensorProto, helper, numpy_helper
from ordeal import Case

from export.onnx.graph import IR_VERSION, MICROSOFT, MICROSOFT_OPSET, OPSET
from fastvlm.errors import ExecutionError
from validation.ort.calls import Calls
from validation.ort.loading import Loaded, load
from validation.ort.opening import Port, open_file
from validation.ort.probing import Prober
from validation.ort.settings import Settings

NAME, DATA = "model.onnx", "model.onnx.data"
WAYS = {"fields": 70, "bytes": 12, "place": 14, "data": 4}  # of changing a model, how often
PROBER = Prober()  # one for all cases of a process, which is never forked while it has a child
MOST_GIVEN = 1 << 20  # values that a case gives as one input
NODES: tuple[tuple[str, Sequence[str], dict[str, Any]], ...] = (
    ("Conv", ("x", "kernel"), {"pads": [1, 1, 1, 1]}),
    ("Pad", ("Conv", "pads"), {}),
    ("Resize", ("Pad", "", "scales"), {"mode": "nearest"}),
    ("Tile", ("Resize", "repeats"), {}),
    ("Reshape", ("Tile", "shape"), {}),
    ("Expand", ("Reshape", "wide"), {}),
    ("MatMul", ("Expand", "weight"), {}),
    ("Gather", ("table", "index"), {}),
    ("ConstantOfShape", ("index",), {}),
    ("Range", ("zero", "ten", "two"), {}),
    ("OneHot", ("Range", "ten", "values"), {}),
    ("CumSum", ("OneHot", "zero32"), {}),
    ("Slice", ("MatMul", "zeros", "ends"), {}),
    ("DequantizeLinear", ("codes", "scale"), {"axis": 0}),
    ("Softmax", ("Slice",), {}),
    ("TopK", ("Softmax", "one"), {}),
    ("ScatterND", ("table", "rows", "updates"), {}),
    ("SimplifiedLayerNormalization", ("MatMul", "norm"), {"axis": -1, "epsilon": 1e-5, "stash_type": 1}),
)
GIVEN = ("Gather", "ConstantOfShape", "CumSum", "TopK", "DequantizeLinear", "ScatterND", "SimplifiedLayerNormalization")


def constants() -> dict[str, np.ndarray]:
    """What the nodes take: floats and codes go into the data, whole numbers stay in the model."""
    draw = np.random.default_rng(0)
    whole = {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "repeats": [1, 1, 2, 1], "shape": [1, -1, 8], "wide": [2, 1, 1],
             "index": [1, 3], "zero": 0, "ten": 10, "two": 2, "values": [0, 1], "zeros": [0, 0, 0], "ends": [1, 4, 4],
             "one": [1], "rows": [[0], [2]]}  # fmt: skip
    found: dict[str, np.ndarray] = {name: np.array(value, np.int64) for name, value in whole.items()}
    shapes = {"kernel": (2, 1, 3, 3), "weight": (8, 16), "table": (16, 4), "updates": (2, 4), "norm": (16,)}
    found |= {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    found |= {
        "scales": np.float32([1, 1, 2, 2]),
        "scale": np.full(16, 0.1, np.float32),
        "zero32": np.array(0, np.int32),
    }
    return found | {"codes": draw.integers(-128, 128, (16, 8)).astype(np.int8)}


def write_many_ops(folder: Path) -> Path:
    """A model of ops whose results are as large as a number says, among others; returns its path."""
    folder.mkdir()
    held, data, tensors = constants(), bytearray(), []
    for name, array in held.items():
        tensor = numpy_helper.from_array(array, name)
        if array.size >= 16:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", DATA), ("offset", len(data)), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            data += array.tobytes()
        tensors.append(tensor)
    nodes = [
        helper.make_node(kind, takes, ["unused", "TopK"] if kind == "TopK" else [kind], name=kind, **attributes)
        for kind, takes, attributes in NODES
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])
    results = [helper.make_empty_tensor_value_info(name) for name in GIVEN]
    for result in results:
        result.type.tensor_type.elem_type = (
            TensorProto.INT64 if result.name in ("CumSum", "TopK") else TensorProto.FLOAT
        )
    graph = helper.make_graph(nodes, "g", [x], results, tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, MICROSOFT_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    (folder / DATA).write_bytes(data)
    (folder / NAME).write_bytes(model.SerializeToString(deterministic=True))
    return folder / NAME


@dataclass(frozen=True)
class OnnxOriginal:
    """A model that is whole, and what it may become."""

    path: Path

    @property
    def data_path(self) -> Path:
        return self.path.with_name(self.path.name + ".data")

    @cached_property
    def message(self) -> ModelProto:
        return ModelProto.FromString(self.path.read_bytes())

    @cached_property
    def names(self) -> list[str]:
        kinds = {node.op_type for node in self.message.graph.node} | {"If", "Loop", "Scan", "EPContext", "Expand"}
        return sorted({*names_in(self.message), *kinds})

    def changed(self, way: str, draw: random.Random) -> tuple[bytes, int]:
        """Another model, and how many bytes its data then has; `way`: one of WAYS."""
        size = self.data_path.stat().st_size
        if way == "fields":
            return changed_message(self.message, draw, self.names), size
        if way == "bytes":
            return changed_bytes(self.path.read_bytes(), draw), size
        if way == "place":
            return self._other_place(draw, size), size
        return self.path.read_bytes(), draw.choice((0, 1, size - 1, size // 2, size + 1))

    def _other_place(self, draw: random.Random, size: int) -> bytes:
        """One entry of where one tensor lies says something else."""
        model = ModelProto()
        model.CopyFrom(self.message)
        tensor = draw.choice([tensor for tensor in model.graph.initializer if tensor.external_data])
        entry = draw.choice(tensor.external_data)
        held = int(entry.value) if entry.value.isdigit() else 0
        numbers = [
            str(each) for each in (-1, 0, 1, held + 4, held - 4, 2 * held, size, size - 1, 1 << 40, (1 << 64) - held)
        ]
        names = [
            "",
            "/etc/passwd",
            "../x",
            self.path.name,
            "*/_ORT_MEM_ADDR_/*",
            "x" * 300,
            "a\0b",
            "0x10",
            " 1",
            "1e3",
        ]
        if draw.random() < 0.2:
            entry.key = draw.choice(("location", "offset", "length", "checksum", "", "prepacked_x"))
        else:
            entry.value = draw.choice(names if entry.key == "location" or draw.random() < 0.2 else numbers)
        if draw.random() < 0.3 and tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice((0, -1, 1 << 20, 1 << 62))
        return bytes(model.SerializeToString(deterministic=True))


def onnx_cases(originals: Sequence[OnnxOriginal], folder: Path, count: int, seed: str = "onnx") -> list[Case]:
    """`count` changes, dealt out in turn to the models; each is laid out in `folder` when its case runs."""
    return [_case(originals[index % len(originals)], folder, f"{seed} {index}") for index in range(count)]


def _case(original: OnnxOriginal, folder: Path, seed: str) -> Case:
    draw = random.Random(f"{original.path.name} {seed}")
    (way,) = draw.choices(tuple(WAYS), tuple(WAYS.values()))

    def run() -> None:
        model, size = original.changed(way, draw)
        path = folder / original.path.name
        path.write_bytes(model)
        data = original.data_path.read_bytes()
        path.with_name(path.name + ".data").write_bytes(data[:size].ljust(size, b"\0"))
        ran(path)

    return f"{original.path.parent.name}/{original.path.name} {seed} {way}", run


def ran(path: Path) -> list[Any]:
    """Opens, loads and runs a model once, on ones; raises the named error where there was one."""
    file = open_file(path)
    json.dumps(file.as_json())
    loaded = load(file, settings=Settings(threads=1), prober=PROBER)
    inputs = {name: _given(name, port) for name, port in file.inputs.items()}
    return list(Calls()("the call", lambda options: _called(loaded, inputs, options)))


def _called(loaded: Loaded, inputs: dict[str, np.ndarray], options: Any) -> Any:
    return loaded.session.run(None, inputs, options)


def _given(name: str, port: Port) -> np.ndarray:
    shape = [length if isinstance(length, int) else 1 for length in port.shape]
    if any(length < 0 for length in shape) or int(np.prod(shape, dtype=object)) > MOST_GIVEN:
        raise ExecutionError(f"{name!a:.60} takes {port.words}, which nobody gives")
    try:
        return np.ones(shape, helper.tensor_dtype_to_np_dtype(port.dtype))
    except (KeyError, TypeError) as error:
        raise ExecutionError(f"{name!a:.60} takes {port.words}, which nobody gives") from error
