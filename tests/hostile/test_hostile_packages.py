"""Damaged and hostile `.mlpackage` folders: whatever one file becomes, there are numbers or a named error."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ordeal import LONG, in_lines, size, tally, try_all
from package_cases import package_cases, ran, used
from stranger_packages import MODEL, Original, Program, stored
from stranger_programs import originals

from fastvlm.errors import ExecutionError, FastVLMError, PackageError
from fastvlm.mlpackage import MODEL_FILE
from validation import within_memory
from validation.contents import describe_package
from validation.lint.checking import lint
from validation.mil import MILModel
from validation.mil.package import MOST_BLOCKS, MOST_OPS, MOST_PROGRAM, open_folder

ROW = "damaged packages / ONNX: packages"
TINY = 10  # one case in so many is of the embedded checkpoint's own packages, which take longer
TINY_PARTS = (MODEL_FILE, str(Path(MODEL_FILE).parent / "weights" / "weight.bin"), "Manifest.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    """The packages that are changed, each run once."""
    found = originals(tmp_path_factory.mktemp("whole"))
    for each in found:
        used(each.folder)
    return found


@pytest.fixture(scope="module")
def tiny_packages(exported_tiny: Path) -> list[Original]:
    """The packages of the embedded checkpoint's build."""
    found = [Original(exported_tiny / f"{name}.mlpackage", TINY_PARTS) for name in ("VisionEncoder", "LanguageModel")]
    for each in found:
        used(each.folder)
    return found


def test_damaged_packages(whole: list[Original], tiny_packages: list[Original], tmp_path: Path) -> None:
    count = size(300, 5_000)
    cases = package_cases(whole, tmp_path, count - count // TINY)
    cases += package_cases(tiny_packages, tmp_path, count // TINY)
    outcomes = try_all(cases)
    answered = sum(outcome.kind == "passed" for outcome in outcomes)
    bad = tally(ROW, outcomes, ran=answered)
    assert not bad, in_lines(bad)
    assert answered >= count // 10, "changes that leave nothing to run show little"


CHECKS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "ops that nobody knows": ("validation.mil.plan.check_ops", lambda *_: None, "crash"),
    "faults of ops": ("validation.mil.execution._located", lambda _, error: error, "crash"),
    "rounds of a loop": ("validation.mil.ops.control_flow._another_round", lambda _: True, "timeout"),
}


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_check_the_row_is_red(
    check: str, whole: list[Original], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, replacement, kind = CHECKS[check]
    chosen = whole if kind == "crash" else [each for each in whole if each.folder.stem == "control"]
    cases = package_cases(chosen, tmp_path, 240, "red")
    assert all(outcome.held for outcome in try_all(cases))
    monkeypatch.setattr(name, replacement)
    assert kind in {outcome.kind for outcome in try_all(cases, seconds=2.0)}


def refused(made: Program, folder: Path, message: str) -> None:
    package = made.write(folder / "a.mlpackage")
    with pytest.raises(FastVLMError, match=message):
        ran(package)


def test_a_loop_without_an_end(tmp_path: Path) -> None:
    made = Program()
    made.input("x", "fp32", (1,))
    loop = made.none("while_loop", "loop", loop_vars=["@x"])
    for kind in ("asked", "made"):
        block = loop.blocks.add()
        value = block.inputs.add(name=kind)
        value.type.CopyFrom(made.function.inputs[0].type)
        result = (
            made.op("equal", "same", "bool", (1,), block, x="@asked", y="@asked")
            if kind == "asked"
            else made.op("identity", "again", "fp32", (1,), block, x="@made")
        )
        block.outputs.append(result[1:])
    loop.outputs.add(name="y").type.CopyFrom(made.function.inputs[0].type)
    made.give("@y")
    refused(made, tmp_path, "10,000 rounds")


def test_a_convolution_without_a_weight(tmp_path: Path) -> None:
    made = Program()
    x = made.input("x", "fp16", (1, 64, 1, 1))
    made.give(made.op("conv", "y", "fp16", (1, 64, 1, 1), x=x, pad_type="valid"))
    refused(made, tmp_path, "lacks its parameter weight")


@pytest.mark.parametrize("count", [5_000, 1 << 16])
def test_more_axes_than_a_tensor_has(tmp_path: Path, count: int) -> None:
    made = Program()
    x = made.input("x", "fp32", (1,))
    made.give(made.op("expand_dims", "y", "fp32", (1, 1), x=x, axes=np.arange(count, dtype=np.int32)))
    refused(made, tmp_path, f"holds {count} values")


@pytest.mark.parametrize("index", [1 << 30, -1])
def test_elements_behind_the_end_of_a_list(tmp_path: Path, index: int) -> None:
    made = Program()
    x = made.input("x", "fp32", (1,))
    made.none("make_list", "items", init_length=np.int32(1), dtype="fp32").outputs.add(name="items").type.CopyFrom(
        made.function.inputs[0].type
    )
    made.none("list_write", "more", ls="@items", index=np.int32(index), value=x).outputs.add(name="more").type.CopyFrom(
        made.function.inputs[0].type
    )
    made.give(made.op("list_length", "y", "int32", (), ls="@more"))
    refused(made, tmp_path, f"element {index} of a list")


def test_results_that_do_not_fit_into_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GB is nothing to refuse where there is room for it; where there is none, the op is named."""
    if within_memory.free_bytes() < 2 << 30:
        pytest.skip("less than 2 GiB are free")
    made = Program()
    shape = made.input("shape", "int32", (1,))
    filled = made.op("fill", "filled", "fp32", (1 << 28,), shape=shape, value=np.float32(1))
    made.give(made.op("reduce_sum", "y", "fp32", (1,), x=filled, axes=np.int32([0]), keep_dims=True))
    model = MILModel(made.write(tmp_path / "a.mlpackage"))
    monkeypatch.setattr(within_memory, "free_bytes", lambda: 64 << 20)
    with pytest.raises(ExecutionError, match=r"op 'filled' \(fill\).*(allocate|MemoryError)"):
        model.predict({"shape": np.int32([1 << 28])})
    assert model.predict({"shape": np.int32([4])})["y"][0] == 4, "the limit ends with the call, and the model lives on"


def test_weights_that_are_mapped_need_no_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Program()
    x = made.input("x", "fp32", (1,))
    weight = stored(np.ones((1, 1 << 24), np.float32))
    total = made.op("reduce_sum", "total", "fp32", (1,), x=weight, axes=np.int32([1]), keep_dims=False)
    made.give(made.op("add", "y", "fp32", (1,), x=x, y=total))
    package = made.write(tmp_path / "a.mlpackage")
    monkeypatch.setattr(within_memory, "free_bytes", lambda: 48 << 20)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert ran(package)["y"] == 1 + (1 << 24)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def many(operations: int, blocks: int) -> Program:
    made = Program()
    x = made.input("x", "fp32", (1,))
    for index in range(operations):
        made.block.operations.add(type="const").outputs.add(name=f"c{index}")
    for index in range(blocks):
        made.none("cond", f"branch{index}", pred=np.bool_(True)).blocks.add()
    made.give(made.op("identity", "y", "fp32", (1,), x=x))
    return made


@pytest.mark.parametrize(("operations", "blocks"), [(MOST_OPS, 0), (0, MOST_BLOCKS + 1)])
def test_programs_beyond_all_bounds(tmp_path: Path, operations: int, blocks: int) -> None:
    refused(many(operations, blocks), tmp_path, "more than 100,000 ops, or 1,000 blocks")


def test_a_file_of_empty_ops(tmp_path: Path) -> None:
    """Two bytes each, and 75 in memory: seen before any of them becomes an object here."""
    made = many(1, 0)
    package = made.write(tmp_path / "a.mlpackage")
    made.block.MergeFromString(b"\x1a\x00" * 10 * MOST_OPS)
    (package / MODEL).write_bytes(made.spec.SerializeToString())
    for look in (open_folder, describe_package, lint):
        with pytest.raises(PackageError, match="more than 100,000 ops"):
            look(package)


def test_a_program_that_is_larger_than_any(tmp_path: Path) -> None:
    package = many(1, 0).write(tmp_path / "a.mlpackage")
    (package / MODEL).write_bytes(bytes(MOST_PROGRAM + 1))
    with pytest.raises(PackageError, match="at most 16,777,216"):
        open_folder(package)


def test_a_long_chain_of_values_that_share_memory(tmp_path: Path) -> None:
    """A list in a list in a list: each may be where the one before it is."""
    made = Program()
    held = made.input("x", "fp32", (1,))
    for index in range(3_000):
        size_of = {"init_length": np.int32(1), "elem_shape": [np.int32(1)], "dtype": "fp32"}
        items = made.op("make_list", f"items{index}", "fp32", (1,), **size_of)
        held = made.op("list_write", f"y{index}", "fp32", (1,), ls=items, index=np.int32(0), value=held)
    made.give(held)
    assert MILModel(made.write(tmp_path / "a.mlpackage")).plan.body.steps


@settings(max_examples=300 if LONG else 60)
@given(data=st.data())
def test_any_bytes_as_a_program(data: st.DataObject, whole: list[Original]) -> None:
    """A fuzzer of the package reader: bytes of its choice, or a program with bytes of its choice put into it."""
    original = data.draw(st.sampled_from(whole))
    program = original.data[MODEL]
    start = data.draw(st.integers(0, len(program)))
    length = data.draw(st.integers(0, len(program)))
    text = program[:start] + data.draw(st.binary(max_size=64)) + program[start + length :]
    package = original.lay(original.folder.parent / "fuzzed.mlpackage", {MODEL: text})
    for look in (open_folder, describe_package, used):
        try:
            look(package)
        except FastVLMError:
            continue


@settings(max_examples=300 if LONG else 60)
@given(text=st.binary(max_size=200) | st.integers(0, (1 << 32) - 1).map(lambda seed: seed.to_bytes(4, "big")))
def test_any_bytes_as_a_package_s_manifest(text: bytes, whole: list[Original]) -> None:
    original = whole[0]
    if len(text) == 4:
        _, text = original.changed("manifest", random.Random(text))
    package = original.lay(original.folder.parent / "fuzzed.mlpackage", {"Manifest.json": text})
    try:
        open_folder(package)
    except PackageError:
        return
