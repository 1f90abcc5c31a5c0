"""Where a program can be cut, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastvlm.build import read_build
from fastvlm.errors import PackageError
from validation.layerwise.bounds import Steps
from validation.layerwise.cutting import cut
from validation.mil.package import Package, open_folder


@pytest.fixture(scope="module")
def package(exported_tiny: Path) -> Package:
    return open_folder(read_build(exported_tiny).language[0].package)


def function(package: Package, name: str) -> Any:
    """A copy of a function's message, to be damaged."""
    message = package.program.functions[name]
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def test_cuts_lie_between_layers(package: Package) -> None:
    """Behind a layer's last sum, which is the largest thing handed over; in every function behind the same layers."""
    layers = 4
    for name in ("prefill", "decode"):
        steps = Steps(function(package, name), name)
        bounds = steps.bounds()
        assert len(bounds) == layers + 1
        for place in bounds[1:-1]:
            assert steps.steps[place - 1].type == "add"
    pieces = list(cut(package, 1))
    assert 1 < len(pieces) <= layers
    assert [sorted(piece.program.functions) for piece in pieces] == [["decode", "prefill"]] * len(pieces)


def test_every_op_is_in_one_piece(package: Package) -> None:
    pieces = list(cut(package, 1))
    for name in ("prefill", "decode"):
        whole = [op for op in Steps(function(package, name), name).steps if op.type != "read_state"]
        parts = [op for piece in pieces for op in Steps(function(piece, name), name).steps if op.type != "read_state"]
        assert [op.SerializeToString(deterministic=True) for op in parts] == [
            op.SerializeToString(deterministic=True) for op in whole
        ]


def test_a_small_package_stays_whole(package: Package) -> None:
    assert list(cut(package, 1 << 30)) == [package]


def test_functions_that_write_otherwise_are_not_cut(package: Package) -> None:
    spec = type(package.spec)()
    spec.CopyFrom(package.spec)
    block = Steps(spec.mlProgram.functions["prefill"], "prefill").block
    block.operations.remove(next(op for op in block.operations if op.type == "write_state"))
    with pytest.raises(PackageError, match=r"cannot be opened in parts: .*decode 4, prefill 3|prefill 3, decode 4"):
        list(cut(package.with_program(spec), 1))


@pytest.mark.parametrize(("kind", "value"), [("slice_by_index", -2), ("slice_update", 0)])
def test_a_state_that_is_read_across_layers(kind: str, value: int, package: Package) -> None:
    """A layer that looks at the state as the one before left it, or updates an old value, is not parted from that."""
    steps = Steps(function(package, "decode"), "decode")
    values = [op.outputs[0].name for op in steps.steps if op.type == "read_state"]
    reading = [op.inputs["x"].arguments[0] for op in steps.steps if op.type == kind]
    [argument for argument in reading if argument.name in values][-1].name = values[value]
    with pytest.raises(PackageError, match="across layers"):
        Steps(steps.message, "decode").bounds()


def test_control_flow(package: Package) -> None:
    message = function(package, "decode")
    Steps(message, "decode").steps[3].blocks.add()
    with pytest.raises(PackageError, match="control flow"):
        Steps(message, "decode")
