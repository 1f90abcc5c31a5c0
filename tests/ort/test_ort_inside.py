"""Model files that hold their weights: read past them at a small file's cost, refused where one lies about them."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx_builds import edit_manifest

from export.onnx.graph import IR_VERSION, OPSET
from fastvlm.build import read_build
from fastvlm.errors import PackageError
from fastvlm.hashes import file_hash
from validation.ort import opening
from validation.ort.inside import read_past_weights
from validation.ort.opening import open_build, open_file

NAME = "model.onnx"
VALUES = np.arange(1024, dtype=np.float32)
LARGE = (opening.MOST_BYTES // 4 + 1024,)  # float32 values that no small file holds
Edit = Callable[[ModelProto], Any]


def model(*weights: TensorProto) -> ModelProto:
    """y = x + each weight in turn."""
    shape = list(weights[0].dims)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    node = helper.make_node("Sum", ["x", *(weight.name for weight in weights)], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def weight(name: str = "w", dims: tuple[int, ...] = VALUES.shape, values: bytes = VALUES.tobytes()) -> TensorProto:
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, raw_data=values)


def write(folder: Path, content: ModelProto | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.SerializeToString()
    (folder / NAME).write_bytes(data)
    return folder / NAME


def refused(path: Path, message: str, size: int | None = None) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        open_file(path, path.stat().st_size if size is None else size)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def past(path: Path) -> tuple[bytes, list[int]]:
    return read_past_weights(path, path.stat().st_size, opening.MOST_BYTES, opening.MOST_PARTS)


def test_what_is_left_is_the_message_without_values(tmp_path: Path) -> None:
    """Byte for byte what protobuf writes when the values are emptied; the lengths are those that it finds."""
    typed = TensorProto(name="typed", data_type=TensorProto.FLOAT, dims=[2], float_data=[1, 2])
    empty = TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0], raw_data=b"")
    whole = model(weight("a"), typed, weight("b", (2, 3), bytes(24)), empty)
    whole.metadata_props.add(key="variant", value="fp32")
    left, lengths = past(write(tmp_path, whole))
    assert lengths == [4096, 0, 24, 0]
    for tensor in whole.graph.initializer:
        if tensor.HasField("raw_data"):
            tensor.raw_data = b""
    assert left == whole.SerializeToString()


def test_a_large_file_opens_where_its_weights_may_be_inside(tmp_path: Path) -> None:
    path = write(tmp_path, model(weight(dims=LARGE, values=bytes(4 * LARGE[0]))))
    file = open_file(path, path.stat().st_size)
    assert file.ops == {"Sum": 1}
    assert file.inputs["x"].shape == LARGE
    with pytest.raises(PackageError, match="more than 8,388,608 bytes, and weights belong"):
        open_file(path)


def test_a_gigabyte_costs_no_more_than_its_message(tmp_path: Path) -> None:
    """A file with a hole, which is where the values are: they are never read."""
    length, small = 1 << 30, model(weight(dims=(1 << 28,)))
    graph, tensor = small.graph, small.graph.initializer[0]
    tensor.ClearField("raw_data")
    head = tensor.SerializeToString() + b"\x4a" + varint(length)
    del graph.initializer[:]
    head = graph.SerializeToString() + b"\x2a" + varint(len(head) + length) + head
    small.ClearField("graph")
    path = write(tmp_path, small.SerializeToString() + b"\x3a" + varint(len(head) + length) + head)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + length)
    tracemalloc.start()
    assert open_file(path, path.stat().st_size).ops == {"Sum": 1}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    with path.open("r+b") as file:
        file.truncate(1 << 31)
    refused(path, "expected at most 2,147,483,647")


def varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes((*made, value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(weight(values=VALUES.tobytes()[:-4])), "'w' has 4,092 bytes inside of the file and takes 4,096"),
        (model(weight(values=bytes(8000))), "'w' has 8,000 bytes inside of the file and takes 4,096"),
        (model(weight("a"), weight("b", (1 << 40,))), "'b' has 4,096 bytes inside of the file and takes 4,398,046,511"),
        (model(weight(dims=(-1,))), r"'w' has 4,096 bytes inside of the file and has the shape \[-1\]"),
        (model(weight("w", (1,) * 9, bytes(4))), "has the shape"),
        (b"", "holds no ONNX graph"),
        (b"hello\n", "no ONNX model, or was cut"),
        (b"\x3a\x7f", "was cut"),
        (b"\x3a\x04\x2a\x04ab", "was cut"),  # a weight that is longer than the graph around it
        (b"\x3a\x04\x2a\x02\x4a\x02abcd", "was cut"),  # values that are longer than their weight
        (b"\x3b\x3c", "was cut"),  # a group
        (b"\xff" * 12, "was cut"),  # a number without end
        (b"\x39\x00", "was cut"),  # eight bytes, of which one is there
        (b"\x32" + varint(opening.MOST_BYTES + 1) + bytes(opening.MOST_BYTES + 1), "8,388,608 bytes beside its weig"),
        (b"\x3a" + varint(2 * 500_001) + b"\x2a\x00" * 500_001, "too many parts beside its weights"),
    ],
)
def test_files_that_lie(tmp_path: Path, content: ModelProto | bytes, message: str) -> None:
    refused(write(tmp_path, content), message)


def test_values_end_with_their_weight(tmp_path: Path) -> None:
    """Values that reach beyond their weight would hide the node behind it; protobuf refuses such a file."""
    loop = helper.make_node("Loop", [], []).SerializeToString()
    node = b"\x0a" + varint(len(loop)) + loop
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[len(node)]).SerializeToString()
    tensor += b"\x4a" + varint(len(node))
    whole = model(weight("good"))
    graph = whole.graph.SerializeToString() + b"\x2a" + varint(len(tensor)) + tensor + node
    whole.ClearField("graph")
    refused(write(tmp_path, whole.SerializeToString() + b"\x3a" + varint(len(graph)) + graph), "was cut")


def test_values_elsewhere_count_as_any_bytes(tmp_path: Path) -> None:
    """Only the graph's own weights are passed by: what hides in a node is read, and bounded."""
    whole = model(weight())
    hidden = weight("hidden", LARGE, bytes(4 * LARGE[0]))
    whole.graph.node.append(helper.make_node("Constant", [], ["c"], value=hidden))
    refused(write(tmp_path, whole), "more than 8,388,608 bytes beside its weights")


def test_what_no_file_may_hold_is_found_here_too(tmp_path: Path) -> None:
    whole = model(weight())
    whole.graph.node.append(helper.make_node("Loop", ["x"], ["z"], domain="my.ops"))
    outside = weight("outside", values=b"")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    whole.graph.initializer.append(outside)
    refused(write(tmp_path, whole), r"domain 'my\.ops'.*lies in '\.\./secret'")


def test_another_size_than_the_manifests(tmp_path: Path) -> None:
    path = write(tmp_path, model(weight()))
    size = path.stat().st_size
    refused(path, f"it has {size:,} bytes, expected the {size + 1:,} that manifest.json says", size + 1)


def test_cut_and_changed_bytes(tmp_path: Path) -> None:
    """A file with any end or any byte changed is opened or refused by name, never anything else."""
    path = write(tmp_path, model(weight("a", (4,), bytes(16)), weight("b", (2,), bytes(8))))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "was cut|holds no ONNX graph|is not opened")
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 2):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        with contextlib.suppress(PackageError):
            open_file(path, len(changed))


def test_only_an_encoder_for_the_coreml_provider_may_hold_its_weights(onnx_build: Path) -> None:
    """The same bytes as another build's encoder, or as a language model, are refused."""
    encoder, language = onnx_build / "VisionEncoder.onnx", onnx_build / "LanguageModel.onnx"
    large = model(weight(dims=LARGE, values=bytes(4 * LARGE[0]))).SerializeToString()
    small = language.read_bytes()

    def opened(target: str, files: dict[Path, bytes]) -> None:
        for path, content in files.items():
            path.write_bytes(content)
        hashes = {path.name: dict(file_hash(path)) for path in files}
        edit_manifest(onnx_build, target=target, files=hashes)
        open_build(onnx_build)

    opened("coreml-ep", {encoder: large, language: small})
    assert read_build(onnx_build, ("onnx",)).target == "coreml-ep"
    for target, files in (
        ("cpu", {encoder: large, language: small}),
        ("coreml-ep", {encoder: large, language: large}),
    ):
        with pytest.raises(PackageError, match="more than 8,388,608 bytes, and weights belong"):
            opened(target, files)
