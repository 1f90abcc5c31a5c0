"""ONNX files each of which one check must refuse, as `package_attacks` has packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from onnx import ModelProto, TensorProto
from package_attacks import Attack
from stranger_onnx import DATA, NAME, write_many_ops

from validation.ort.opening import MOST_BYTES, MOST_PARTS, OPSETS, check_unchanged, open_file


@cache
def onnx_model() -> tuple[bytes, bytes]:
    """A model and its data."""
    folder = Path(mkdtemp())
    path = write_many_ops(folder / "model")
    found = path.read_bytes(), path.with_name(DATA).read_bytes()
    shutil.rmtree(folder)
    return found


def opened(folder: Path, model: bytes, data: bytes | None = None) -> None:
    (folder / NAME).write_bytes(model)
    (folder / DATA).write_bytes(onnx_model()[1] if data is None else data)
    open_file(folder / NAME)


def model(change: Callable[[Any], object]) -> Attack:
    """The model, its message changed."""

    def attack(folder: Path) -> None:
        message = ModelProto.FromString(onnx_model()[0])
        change(message)
        opened(folder, message.SerializeToString())

    return attack


def placed(**entries: str) -> Attack:
    """Another place for the first tensor that lies outside; one without a name is not told."""

    def change(message: Any) -> None:
        tensor = _outside(message)
        for key, value in entries.items():
            (entry,) = (entry for entry in tensor.external_data if entry.key == key)
            entry.value = value

    return model(change)


def _outside(message: Any, number: int = 0) -> Any:
    return [tensor for tensor in message.graph.initializer if tensor.external_data][number]


def _twice(message: Any) -> None:
    tensor = _outside(message)
    tensor.external_data.add(key="location", value=DATA)


def _both(message: Any) -> None:
    _outside(message).data_location = TensorProto.DEFAULT


def _shared(message: Any) -> None:
    """The place of one tensor for the values of another."""
    first, second = _outside(message), _outside(message, 1)
    places = [next(entry for entry in tensor.external_data if entry.key == "offset") for tensor in (first, second)]
    places[1].value = places[0].value


def _shaped(*dims: int) -> Callable[[Any], object]:
    def change(message: Any) -> None:
        tensor = _outside(message)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def _unknown(message: Any) -> None:
    message.MergeFromString(b"\xfa\x3f\x01x")  # field 1,023


def _sparse(message: Any) -> None:
    values = message.graph.sparse_initializer.add()
    values.values.name = "few"


def _attribute(message: Any, **given: Any) -> Any:
    return message.graph.node[0].attribute.add(**given)


def _body(message: Any) -> None:
    _attribute(message, name="body", type=5).g.name = "inner"


def _imports(message: Any, domain: str, version: int) -> None:
    message.opset_import.add(domain=domain, version=version)


def _newer(message: Any) -> None:
    message.opset_import[0].version = OPSETS[""][-1] + 1


def parts(folder: Path) -> None:
    """Two bytes each, and 150 in memory: empty attributes of one node."""
    many = b"\x2a\x00" * (MOST_PARTS + 1)
    opened(folder, onnx_model()[0] + _field(7, _field(1, many)))


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf that has a length."""
    return (
        bytes((number << 3 | 2, *(len(content) >> 7 * place & 127 | 128 for place in range(4)), len(content) >> 28))
        + content
    )


def _huge(message: Any) -> None:
    message.doc_string = "x" * MOST_BYTES


def _no_tensor(message: Any) -> None:
    port = message.graph.input.add(name="sequence")
    port.type.sequence_type.elem_type.tensor_type.elem_type = 1


def _no_text(folder: Path) -> None:
    opened(folder, onnx_model()[0].replace(b"SimplifiedLayerNormalization", b"SimplifiedLayerNormalizatio\xff"))


def other_name(folder: Path) -> None:
    (folder / "model.ort").write_bytes(onnx_model()[0])
    (folder / DATA).write_bytes(onnx_model()[1])
    open_file(folder / "model.ort")


def linked(name: str) -> Attack:
    def attack(folder: Path) -> None:
        with suppress(Exception):
            opened(folder, onnx_model()[0])
        os.rename(folder / name, folder / "kept")
        (folder / name).symlink_to(folder / "kept")
        open_file(folder / NAME)

    return attack


def missing(name: str) -> Attack:
    def attack(folder: Path) -> None:
        opened(folder, onnx_model()[0])
        (folder / name).unlink()
        open_file(folder / NAME)

    return attack


def exchanged(folder: Path) -> None:
    """Other data than was looked at, when the library has opened it."""
    (folder / NAME).write_bytes(onnx_model()[0])
    (folder / DATA).write_bytes(onnx_model()[1])
    file = open_file(folder / NAME)
    (folder / DATA).write_bytes(onnx_model()[1] + b"x")
    check_unchanged(file)


def gone(folder: Path) -> None:
    (folder / NAME).write_bytes(onnx_model()[0])
    (folder / DATA).write_bytes(onnx_model()[1])
    file = open_file(folder / NAME)
    (folder / DATA).unlink()
    check_unchanged(file)


def inside(change: Callable[[bytes], bytes] = lambda data: data, more: int = 0) -> Attack:
    """A model file that may hold weights, and `more` bytes than that by its manifest."""

    def attack(folder: Path) -> None:
        data = change(onnx_model()[0])
        (folder / NAME).write_bytes(data)
        (folder / DATA).write_bytes(onnx_model()[1])
        open_file(folder / NAME, len(data) + more)

    return attack


def weight(told: int, held: int) -> Callable[[bytes], bytes]:
    """A weight of 31 floats at the end of the file, whose values are said to have `told` bytes."""
    tensor = b"\x08\x1f\x10\x01\x42\x01w\x4a" + bytes((told, *(1,) * held))
    return lambda data: data + _field(7, _field(5, tensor))


ONNX: dict[str, Attack] = {
    "another kind of name": other_name,
    "a model that is a link": linked(NAME),
    "data that are a link": linked(DATA),
    "no model": missing(NAME),
    "no data": missing(DATA),
    "no message": lambda folder: opened(folder, b"\xff" * 90),
    "no graph": model(lambda message: message.graph.ClearField("node")),
    "parts by the million": parts,
    "a model of 8 MB": model(_huge),
    "a name that is no text": _no_text,
    "an IR version to come": model(lambda message: setattr(message, "ir_version", 99)),
    "no opset": model(lambda message: message.ClearField("opset_import")),
    "an opset twice": model(lambda message: _imports(message, "", OPSETS[""][-1])),
    "an opset to come": model(_newer),
    "ops of a stranger": model(lambda message: _imports(message, "com.stranger", 1)),
    "an op of a domain that is not imported": model(lambda message: setattr(message.graph.node[0], "domain", "x")),
    "a field that nobody knows": model(_unknown),
    "functions": model(lambda message: message.functions.add(name="f")),
    "training": model(lambda message: message.training_info.add()),
    "a sparse tensor": model(_sparse),
    "a graph in a node": model(_body),
    "a number beyond 32 bits": model(lambda message: _attribute(message, name="group", type=2, i=1 << 40)),
    "a provider's own file": model(lambda message: setattr(message.graph.node[0], "op_type", "EPContext")),
    "a sequence for an input": model(_no_tensor),
    "values and a place": model(_both),
    "a place told twice": model(_twice),
    "a place elsewhere": placed(location="../" + DATA),
    "a place in memory": placed(location="*/_ORT_MEM_ADDR_/*"),
    "a place behind the end": placed(offset=str(1 << 40)),
    "a place that is no number": placed(offset="0x10"),
    "a length that is another": placed(length="4"),
    "a type that no weight has": model(lambda message: setattr(_outside(message), "data_type", TensorProto.STRING)),
    "nine axes": model(_shaped(1, 1, 1, 1, 1, 1, 2, 1, 9)),
    "an axis below nothing": model(_shaped(-2, -1, 3, 3)),
    "shared bytes": model(_shared),
    "data that are exchanged": exchanged,
    "data that are gone": gone,
    "more bytes than the manifest says": inside(lambda data: data + b"\x32\x01x", more=-3),
    "a weight inside of another size": inside(weight(64, 64)),
    "a weight inside that is cut": inside(weight(124, 64)),
    "fields by the million beside weights": inside(lambda data: data + b"\x32\x00" * (MOST_PARTS + 1)),
    "a cut model with weights inside": inside(lambda data: data[:-30]),
    "8 MB beside the weights inside": inside(lambda data: data + _field(6, b"x" * (MOST_BYTES + 1))),
}  # fmt: skip
