"""Packages made to harm: links and pipes instead of files, names and shapes beyond all bounds, values of no sense."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_messages import _declare, _fill, add_op, empty_program, give, one_op

from fastvlm.errors import ExecutionError, PackageError
from validation.mil import MILModel
from validation.mil.binding import to_tensor
from validation.mil.package import Package

ONE = np.ones(1, np.float32)
MODEL, WEIGHTS, MANIFEST = "Data/com/model.mlmodel", "Data/com/weights/weight.bin", "Manifest.json"
NAME = "@model_path/weights/weight.bin"


@pytest.fixture(autouse=True)
def within_five_seconds() -> Iterator[None]:
    """What hangs fails."""

    def stop(*_: Any) -> None:
        raise AssertionError("still busy after 5 s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def constant(block: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
    """Appends a const op of that type; returns its Value, for the caller to fill."""
    operation = block.operations.add(type="const")
    _fill(operation.attributes["name"], name)
    _declare(operation.attributes["val"].type, dtype, shape)
    _declare(operation.outputs.add(name=name).type, dtype, shape)
    return operation.attributes["val"]


def weight_file(values: np.ndarray) -> bytes:
    """A weight file of one float32 blob, whose metadata lies at 64."""
    header = np.array([1, 2], "<u4").tobytes() + bytes(56)
    metadata = np.array([0xDEADBEEF, 2], "<u4").tobytes() + np.array([values.nbytes, 128], "<u8").tobytes()
    return header + metadata.ljust(64, b"\0") + values.tobytes()


def stored_spec(file_name: str = NAME) -> Any:
    """x (1,) + the blob at 64 of the weight file."""
    spec, block = empty_program({"x": ONE})
    value = constant(block, "c", "fp32", (1,))
    value.blobFileValue.fileName, value.blobFileValue.offset = file_name, 64
    add_op(block, "add", {"y": "fp32"}, {"x": "@x", "y": "@c"})
    give(spec, block, ["y"])
    return spec


def write_package(folder: Path, file_name: str = NAME, model: str = "com/model.mlmodel") -> Path:
    """A package of `stored_spec` with 41 stored, its manifest naming `model`."""
    (folder / WEIGHTS).parent.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(weight_file(np.float32([41])))
    (folder / MODEL).write_bytes(stored_spec(file_name).SerializeToString())
    items = {"rootModelIdentifier": "m", "itemInfoEntries": {"m": {"path": model}}}
    (folder / MANIFEST).write_text(json.dumps(items))
    return folder


def run(source: Any, **options: Any) -> float:
    return float(MILModel(source, **options).predict({"x": ONE})["y"][0])


def refused(message: str, source: Any, **options: Any) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        run(source, **options)
    assert "\n" not in str(caught.value)


def test_links_that_stay_in_the_package_are_refused_too(tmp_path: Path) -> None:
    package = write_package(tmp_path / "a.mlpackage")
    assert run(package) == 42
    (tmp_path / "link.mlpackage").symlink_to(package)  # the user's own word
    assert run(tmp_path / "link.mlpackage") == 42
    (package / WEIGHTS).rename(package / "elsewhere.bin")
    (package / WEIGHTS).symlink_to("../../../elsewhere.bin")
    refused("is a link", package)


@pytest.mark.parametrize("part", ["Data", "Data/com", "Data/com/weights", MANIFEST, MODEL, WEIGHTS])
def test_a_link_out_of_the_package_is_never_followed(tmp_path: Path, part: str) -> None:
    package = write_package(tmp_path / "a.mlpackage")
    (package / part).rename(tmp_path / "outside")
    (package / part).symlink_to(tmp_path / "outside")
    refused("is a link", package)
    if "weights" not in part:
        with pytest.raises(PackageError, match="is a link"):
            MILModel(package)


@pytest.mark.parametrize("part", [MANIFEST, MODEL, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, part: str, kind: str) -> None:
    package = write_package(tmp_path / "a.mlpackage")
    path = package / part
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda place: os.symlink(path.name, place)}[kind](path)
    refused("no plain file", package)


@pytest.mark.parametrize(
    "model", ["/etc/passwd", "../x", "a" * 300, "a/" * 3000 + "b", "a\0b", "a\ud800", "a\nb", "", ".", "com"]
)
def test_model_paths_of_no_sense(tmp_path: Path, model: str) -> None:
    refused(
        "plain relative path|is missing|no plain file|half a character",
        write_package(tmp_path / "a.mlpackage", model=model),
    )


@pytest.mark.parametrize(
    "name", ["@model_path//etc/passwd", "@model_path/../../x", "@model_path/" + "a" * 5000, "@model_path/a\0b"]
)
def test_weight_names_of_no_sense(tmp_path: Path, name: str) -> None:
    package = write_package(tmp_path / "a.mlpackage", name)
    refused("plain relative path|is missing|no plain file", package)
    refused("plain relative path|is missing|no plain file", stored_spec(name), weights=package / "Data/com/weights")


@pytest.mark.parametrize("source", ["a\0b", "a" * 5000, "\ud800", ""])
def test_sources_of_no_sense(source: str) -> None:
    refused("expected an .mlpackage folder|no Manifest", source)


@pytest.mark.parametrize("weights", ["a\0b", "a" * 5000, 3])
def test_weight_folders_of_no_sense(weights: object) -> None:
    refused("is missing|weights|no plain file|cannot be read", stored_spec(), weights=weights)


def immediate(shape: tuple[int, ...], values: list[Any], dtype: str = "fp32", kind: str = "floats") -> np.ndarray:
    """A program's constant of that type, stored as `values` in the protobuf field `kind`."""
    spec, block = empty_program({"x": ONE})
    getattr(constant(block, "c", dtype, shape).immediateValue.tensor, kind).values.extend(values)
    add_op(block, "identity", {"a": "fp32"}, {"x": "@x"})
    give(spec, block, ["c"])
    return MILModel(spec, precision="fp32").predict({"x": ONE})["c"]


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ((1 << 50,), [1.0]),
        ((2**64 - 1,), [1.0]),
        ((2**63, 0), []),
        ((2**32, 2**32), []),
        ((2**40, 2**40), [1.0]),
        ((1 << 33,), [1.0]),
    ],
)
def test_shapes_beyond_all_bounds(shape: tuple[int, ...], values: list[float]) -> None:
    with pytest.raises(PackageError, match="elements, at most"):
        immediate(shape, values)


def test_one_stored_value_stands_for_all_without_memory() -> None:
    spec, block = empty_program({"x": ONE})
    constant(block, "c", "fp32", (1 << 28,)).immediateValue.tensor.floats.values.append(7)
    add_op(block, "reduce_sum", {"y": "fp32"}, {"x": "@x"})
    give(spec, block, ["y", "c"])
    tensor = MILModel(spec).predict_tensors({"x": ONE})["c"]
    assert tensor.shape == (1 << 28,)
    assert tensor.untyped_storage().nbytes() == 4
    assert tensor[-1] == 7


def test_an_integer_parameter_has_few_values() -> None:
    spec, block = empty_program({"x": ONE})
    constant(block, "c", "int32", (1 << 28,)).immediateValue.tensor.ints.values.append(1)
    add_op(block, "reshape", {"y": "fp32"}, {"x": "@x", "shape": "@c"})
    give(spec, block, ["y"])
    refused("268435456 values", spec)


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "message"),
    [
        ([300], "uint8", "ints", "300, which uint8 cannot hold"),
        ([-1], "uint8", "ints", "-1, which uint8 cannot hold"),
        ([8], "int4", "ints", "8, which int4 cannot hold"),
        ([5], "bool", "ints", "5, which bool cannot hold"),
        ([1.5], "int32", "floats", r"1\.5, which int32 cannot hold"),
        ([1e300], "fp32", "doubles", r"1e\+300, which fp32 cannot hold"),
        ([7e4], "fp16", "floats", r"70000\.0, which fp16 cannot hold"),
        (["abc"], "fp32", "strings", "stored as strings"),
    ],
)
def test_constants_that_their_type_cannot_hold(values: list[Any], dtype: str, kind: str, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        immediate((1,), values, dtype, kind)


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        ([255], "uint8", "ints"),
        ([-8], "int4", "ints"),
        ([True], "bool", "bools"),
        ([2**40], "int64", "longInts"),
        ([float("inf")], "fp16", "floats"),
        ([1 / 3], "fp32", "doubles"),
        ([float("nan")], "fp32", "floats"),
    ],
)
def test_constants_that_their_type_holds(values: list[Any], dtype: str, kind: str) -> None:
    np.testing.assert_array_equal(immediate((1,), values, dtype, kind).astype(np.float32), np.float32(values))


def test_a_constant_of_64_bits_does_not_change_its_sign() -> None:
    with pytest.raises(PackageError, match="uint64"):
        to_tensor(np.array([2**63], np.uint64))


def with_state(shape: tuple[int | None, ...]) -> MILModel:
    spec, block = empty_program({"x": ONE})
    item = spec.mlProgram.functions["main"].inputs.add(name="s")
    _declare(item.type.stateType.wrappedType, "fp32", shape)
    add_op(block, "read_state", {"r": "fp32"}, {"input": "@s"})
    add_op(block, "add", {"y": "fp32"}, {"x": "@x", "y": "@r"})
    give(spec, block, ["y"])
    return MILModel(spec)


def optional_input(shape: tuple[int, ...]) -> Any:
    spec, block = empty_program({"x": ONE})
    _declare(spec.mlProgram.functions["main"].inputs.add(name="o").type, "fp32", shape)
    item = spec.description.input.add(name="o")
    item.type.multiArrayType.SetInParent()
    item.type.isOptional = True
    add_op(block, "add", {"y": "fp32"}, {"x": "@x", "y": "@o"})
    give(spec, block, ["y"])
    return spec


@pytest.mark.parametrize("shape", [(1 << 50,), (2**64 - 1,), (2**32, 2**32)])
def test_states_and_defaults_beyond_all_bounds(shape: tuple[int, ...]) -> None:
    with pytest.raises(PackageError, match="elements, at most"):
        with_state(shape).make_state()
    refused("elements, at most", optional_input(shape))


def test_states_and_defaults_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model, optional = with_state((4,)), MILModel(optional_input((4,)))
    monkeypatch.setattr("torch.zeros", exhausted)
    monkeypatch.setattr("torch.full", exhausted)
    with pytest.raises(PackageError, match=r"state 's' of shape \[4\] .* allocate"):
        model.make_state()
    with pytest.raises(PackageError, match=r"input 'o' .* allocate"):
        optional.predict({"x": ONE})


def test_a_state_without_a_fixed_shape() -> None:
    with pytest.raises(PackageError, match=r"state 's' .*fp32\[\?\].*fixed"):
        with_state((None,)).make_state()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("softmax", {"axis": "abc"}), ("reduce_sum", {"axes": "abc"}), ("reduce_sum", {"axes": np.float32(np.nan)})],
)
def test_a_parameter_of_another_type(kind: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(PackageError, match="damaged"):
        one_op(kind, {"x": (np.ones(2, np.float32),), **arguments})


def test_faults_of_constants_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("validation.mil.binding.to_tensor", exhausted)
    with pytest.raises(PackageError, match=r"fp32\[2\].*MemoryError"):
        one_op("add", {"x": (np.ones(2, np.float32),), "y": np.float32([1, 2])})


def test_function_names_and_devices_of_no_sense(tmp_path: Path) -> None:
    package = write_package(tmp_path / "a.mlpackage")
    with pytest.raises(ExecutionError, match="function name 3 given, expected one of main"):
        MILModel(package, 3)  # type: ignore[arg-type]
    for device in (None, 7, "abc"):
        with pytest.raises(ExecutionError, match="cannot be used"):
            MILModel(package, device=device)  # type: ignore[arg-type]


EDITS: list[Callable[[Any], None]] = [
    lambda spec: spec.mlProgram.functions["main"].Clear(),
    lambda spec: spec.Clear(),
]


@pytest.mark.parametrize("edit", EDITS)
def test_editing_a_spec_changes_no_model(tmp_path: Path, edit: Callable[[Any], None]) -> None:
    package = write_package(tmp_path / "a.mlpackage")
    spec = stored_spec()
    model = MILModel(spec, weights=package / "Data/com/weights")
    edit(spec)
    edit(model.get_spec())
    assert model.predict({"x": ONE})["y"][0] == 42
    assert model.function("main").predict({"x": ONE})["y"][0] == 42
    assert model.get_spec() == stored_spec()


def test_editing_a_stored_value_changes_no_model(tmp_path: Path) -> None:
    package = write_package(tmp_path / "a.mlpackage")
    spec = stored_spec()
    model = MILModel(spec, weights=package / "Data/com/weights")
    for edited in (spec, model.get_spec()):
        function = edited.mlProgram.functions["main"]
        value = function.block_specializations[function.opset].operations[0].attributes["val"]
        value.blobFileValue.offset = 4096
    assert model.predict({"x": ONE})["y"][0] == 42


def test_a_package_is_shared_not_copied(tmp_path: Path) -> None:
    opened = MILModel(write_package(tmp_path / "a.mlpackage")).package
    assert isinstance(opened, Package)
    assert MILModel(opened).package is opened
    shutil.rmtree(tmp_path / "a.mlpackage")
    assert MILModel(opened).function_name == "main"
