"""ONNX files of strangers: every way in which one can lie is a named error, before onnxruntime has seen the file."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from export.onnx.graph import IR_VERSION, OPSET
from fastvlm.errors import PackageError
from validation.ort import opening
from validation.ort.opening import OnnxFile, open_file

NAME, DATA = "model.onnx", "model.onnx.data"
VALUES = np.arange(1024, dtype=np.float32)
EXTERNAL = {"location": DATA, "offset": "0", "length": str(VALUES.nbytes)}
Edit = Callable[[ModelProto], Any]


@pytest.fixture(autouse=True)
def within_ten_seconds() -> Iterator[None]:
    """What hangs fails."""

    def stop(*_: Any) -> None:
        raise AssertionError("still busy after 10 s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def external(name: str = "weight", dims: tuple[int, ...] = VALUES.shape, **place: str) -> TensorProto:
    """A tensor whose values lie outside; `place` replaces what it says of them."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (EXTERNAL | place).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def good_model() -> ModelProto:
    """y = x + weight, the weight in the data file."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, VALUES.shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", [x], [y], [external()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def write(folder: Path, edit: Edit = lambda model: None) -> Path:
    """The good model, edited, with its data."""
    model = good_model()
    edit(model)
    (folder / NAME).write_bytes(model.SerializeToString())
    (folder / DATA).write_bytes(VALUES.tobytes())
    return folder / NAME


def refused(path: Path, message: str) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        open_file(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_good_file(tmp_path: Path) -> None:
    file = open_file(write(tmp_path))
    assert isinstance(file, OnnxFile)
    assert file.inputs["x"].words == "float [1024]"
    assert file.ops == {"Add": 1}


# The file itself


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (good_model().SerializeToString().replace(b"Add", b"A\xffd"), "no text"),
        (b"", r"holds no ONNX graph \(0 bytes\)"),
        (b"hello\n", "no ONNX model|holds no ONNX graph"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "no ONNX model|holds no ONNX graph"),
        (b"\x89PNG\r\n\x1a\n" + bytes(400), "no ONNX model|holds no ONNX graph"),
        (bytes(100), "no ONNX model"),
        (b"x" * (opening.MOST_BYTES + 1), "more than 8,388,608 bytes, and weights belong"),
        (ModelProto(ir_version=10).SerializeToString(), "holds no ONNX graph"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / NAME).write_bytes(content)
    refused(tmp_path / NAME, message)


def test_a_cut_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused(path, "was cut|holds no ONNX graph|is not opened")


@pytest.mark.parametrize("name", [NAME, DATA])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "is missing"), ("folder", "no plain file"), ("pipe", "no plain file"), ("link", "is a link")],
)
def test_what_is_no_plain_file(tmp_path: Path, name: str, kind: str, message: str) -> None:
    write(tmp_path)
    path = tmp_path / name
    path.rename(tmp_path / "elsewhere")
    if kind != "missing":
        {"folder": os.mkdir, "pipe": os.mkfifo, "link": lambda p: os.symlink(tmp_path / "elsewhere", p)}[kind](path)
    refused(tmp_path / NAME, message)


def test_a_file_of_empty_messages(tmp_path: Path) -> None:
    """Two bytes make a node: the whole of the file would be millions, each a hundred times as large in memory."""
    nodes = b"\x0a\x00" * (opening.MOST_PARTS + 1)
    size, encoded = len(nodes), b""
    while size:
        size, low = size >> 7, size & 127
        encoded += bytes([low | (128 if size else 0)])
    (tmp_path / NAME).write_bytes(b"\x3a" + encoded + nodes)
    refused(tmp_path / NAME, "more than 500,000 parts")


# Its version


def opsets(*pairs: tuple[str, int]) -> Edit:
    def edit(model: ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(*pair) for pair in pairs)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: setattr(model, "ir_version", 7), "IR version is 7, expected 8 to 10"),
        (lambda model: setattr(model, "ir_version", 99), "IR version is 99, expected 8 to 10"),
        (opsets(("", 16)), "opset 16 of the standard ops, expected 17 to 21"),
        (opsets(("", 99)), "opset 99 of the standard ops"),
        (opsets(("com.microsoft", 1)), "expected the standard one, and each once"),
        (opsets(("", 21), ("ai.onnx", 21)), "expected the standard one, and each once"),
        (opsets(("", 21), ("com.microsoft", 2)), "opset 2 of com.microsoft, expected 1"),
        (opsets(("", 21), ("my.ops", 1)), "domain 'my.ops', known are the standard one and com.microsoft"),
        (opsets(), "expected the standard one"),
    ],
)
def test_versions(tmp_path: Path, edit: Edit, message: str) -> None:
    refused(write(tmp_path, edit), message)


# What it may not hold


def node(kind: str, **attributes: Any) -> Edit:
    domain = attributes.pop("domain", "")
    return lambda model: model.graph.node.append(helper.make_node(kind, ["x"], ["z"], domain=domain, **attributes))


def constant(tensor: TensorProto) -> Edit:
    return node("Constant", value=tensor)


def sub_graph(model: ModelProto) -> None:
    y = helper.make_tensor_value_info("y2", TensorProto.FLOAT, VALUES.shape)
    inner = helper.make_graph([helper.make_node("Identity", ["w2"], ["y2"])], "inner", [], [y])
    inner.initializer.append(external("w2", location="../secret"))
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))


def function(model: ModelProto) -> None:
    body = [helper.make_node("Constant", [], ["o"], value=external("hidden", location="/etc/passwd"))]
    made = helper.make_function("", "Mine", ["i"], ["o"], body, [helper.make_opsetid("", OPSET)])
    model.functions.append(made)


def sparse(**place: str) -> SparseTensorProto:
    indices = numpy_helper.from_array(np.arange(1, dtype=np.int64))
    return SparseTensorProto(values=external("few", (1,), **place), indices=indices, dims=[1 << 40])


def training(model: ModelProto) -> None:
    graph = model.training_info.add().initialization
    graph.initializer.append(external("trained", location="../secret"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (node("Loop", domain="my.ops"), "'Loop' is of the domain 'my.ops'"),
        (node("EPContext", ep_cache_context="/etc/passwd"), "EPContext names files of its own"),
        (sub_graph, r"lies in '\.\./secret'.*runs a graph of its own|runs a graph of its own.*lies in"),
        (function, "functions of its own.*lies in '/etc/passwd'"),
        (training, r"training graph.*lies in '\.\./secret'"),
        (lambda m: m.graph.sparse_initializer.append(sparse(length="4")), "sparse tensor"),
        (lambda m: m.graph.sparse_initializer.append(sparse(length="4", location="../x")), r"sparse.*lies in '\.\./x'"),
        (node("Constant", sparse_value=sparse(location="/x", length="4")), "sparse.*lies in '/x'"),
        (constant(external("hidden", location="../../secret")), r"'hidden' lies in '\.\./\.\./secret'"),
        (node("Mine", many=[external("one"), external("two", location="a/b")]), "'two' lies in 'a/b'"),
        (lambda m: m.graph.ParseFromString(m.graph.SerializeToString() + b"\xfa\x3f\x01x"), "does not know"),
        (lambda m: m.graph.input[0].type.sequence_type.SetInParent(), "'x' is no tensor"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, edit: Edit, message: str) -> None:
    refused(write(tmp_path, edit), message)


def test_all_problems_at_once(tmp_path: Path) -> None:
    def edit(model: ModelProto) -> None:
        model.ir_version = 7
        function(model)
        model.graph.initializer.extend(external(f"w{number}", location="..") for number in range(20))

    refused(write(tmp_path, edit), r"IR version.*functions.*'w\d+' lies in '\.\.'.*and 15 more")


# Its data


def place(**entries: str) -> Edit:
    return lambda model: model.graph.initializer[0].CopyFrom(external(**entries))


def add_entry(key: str, value: str) -> Edit:
    return lambda model: model.graph.initializer[0].external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        *((place(location=name), "expected the name of a file beside") for name in (
            "", "/etc/passwd", "..", "../model.onnx.data", "./model.onnx.data", "sub/model.onnx.data", "a\\b", "C:x",
            "*/_ORT_MEM_ADDR_/*", "a" * 5000, "é\n",
        )),
        (place(location="nothing.data"), "data file nothing.data is missing"),
        (place(offset="-1"), "expected an offset"),
        (place(offset="1e3"), "expected an offset"),
        (place(offset="٣"), "expected an offset"),
        (place(offset="9" * 5000), "expected an offset"),
        (place(offset="4"), "ends at byte 4,100 of model.onnx.data, which has 4,096"),
        (place(offset=str(1 << 62)), "ends at byte 4,611,"),
        (place(length="4095"), "the 4,096 bytes of its shape"),
        (place(length=""), "the 4,096 bytes of its shape"),
        (place(length=str(1 << 62)), "the 4,096 bytes of its shape"),
        (add_entry("location", DATA), "describes its place by"),
        (add_entry("prepacked_0", "x|0|1|"), "describes its place by"),
        (lambda m: m.graph.initializer[0].ClearField("external_data"), "lies in ''"),
        (lambda m: m.graph.initializer[0].ClearField("data_location"), "both values and a place"),
        (lambda m: m.graph.initializer[0].dims.append(1 << 62), "bytes of its shape"),
        (lambda m: m.graph.initializer[0].dims.append(-1), r"has the shape \[1024, -1\]"),
        (lambda m: m.graph.initializer[0].dims.extend([1 << 62] * 100_000), "has the shape"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "is of the type 8"),
        (lambda m: m.graph.initializer.append(external("other")), "'(other|weight)' share"),
        (
            lambda m: m.graph.initializer.append(external("part", (3,), offset="1000", length="12")),
            "'weight' and 'part' share bytes of model.onnx.data",
        ),
    ],
)  # fmt: skip
def test_where_values_lie(tmp_path: Path, edit: Edit, message: str) -> None:
    refused(write(tmp_path, edit), message)


def test_what_the_data_may_be(tmp_path: Path) -> None:
    """Offset and length may be left out, values of four bits share bytes, and one that is empty shares none."""

    def edit(model: ModelProto) -> None:
        first = model.graph.initializer[0]
        del first.external_data[1:]
        first.dims[0] = 1000
        codes = external("codes", (7,), offset="4000", length="4")
        codes.data_type = TensorProto.UINT4
        model.graph.initializer.extend([codes, external("none", (0, 5), offset="100", length="0")])

    open_file(write(tmp_path, edit))


def test_cut_data(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / DATA).write_bytes(VALUES.tobytes()[:-1])
    refused(path, "ends at byte 4,096 of model.onnx.data, which has 4,095 bytes; export")


def test_cut_data_of_many_tensors_is_one_problem(tmp_path: Path) -> None:
    def edit(model: ModelProto) -> None:
        places = (str(4096 + 4 * place) for place in range(20))
        model.graph.initializer.extend(external(f"w{place}", (1,), offset=place, length="4") for place in places)

    with pytest.raises(PackageError) as caught:
        open_file(write(tmp_path, edit))
    assert "(20 of 21 tensors do not lie in it whole)" in str(caught.value)
    assert str(caught.value).count("ends at byte") == 1


def test_changed_bytes(tmp_path: Path) -> None:
    """A file with any byte changed is opened or refused by name, never anything else."""
    path = write(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 2):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        with contextlib.suppress(PackageError):
            open_file(path)
