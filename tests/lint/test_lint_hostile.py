"""Packages made to harm: a report or one PackageError, in little time; never another error, never a hang."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lint_cases import CASES, MAP, on
from lint_programs import HALF, conv, message, package, palette
from mil_messages import _declare, _fill
from mutations import changed_message, names_in

from fastvlm.errors import BuildError, PackageError, UsageError
from validation.lint.checking import lint
from validation.lint.report import LintReport
from validation.mil.package import open_folder

MUTATIONS = 150  # of each package; 3,000 of each gave the same two endings
# Packages that between them hold every kind of thing that rules read: compressed weights, states, branches, images.
MUTATED = ("palette-scale", "palette-vector", "offsets", "state-two", "control-flow", "image-scaling", "pad-mode",
           "offset-slice", "argmax-axis", "conv-dilation", "tile-parts", "product-rank")  # fmt: skip


@pytest.fixture(autouse=True)
def within_two_minutes() -> Iterator[None]:
    """What hangs fails."""

    def stop(*_: Any) -> None:
        raise AssertionError("still busy after two minutes")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 120)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def judged(path: Path) -> str:
    """How it ends."""
    try:
        report = lint(path)
    except PackageError:
        return "refused"
    assert isinstance(report, LintReport)
    assert 0 <= report.resident_percent <= 100
    assert report.as_json()
    return "report"


@pytest.mark.parametrize("rule", MUTATED)
def test_mutated_programs(rule: str, tmp_path: Path) -> None:
    path = package(next(case for case in CASES if case.rule == rule).broken(), tmp_path)
    model = path / "Data" / "com" / "model.mlmodel"
    whole = open_folder(path).spec
    names = names_in(whole)
    endings = set()
    for seed in range(MUTATIONS):
        draw = random.Random(f"{rule} {seed}")
        model.write_bytes(changed_message(whole, draw, names))
        endings.add(judged(path))
    assert endings == {"report", "refused"}


def chained(depth: int) -> Any:
    """A weight computed from a weight, `depth` deep."""
    spec = message([("conv", {"x": "@x", "weight": np.ones((4, 4, 1, 1), HALF)}, {"y": ("fp16", MAP)})])
    block = spec.mlProgram.functions["main"].block_specializations["CoreML8"]
    operation = block.operations.pop()
    operation.inputs["weight"].arguments[0].name = f"w{depth}"
    for place in range(depth + 1):
        made = block.operations.add(type="constexpr_blockwise_shift_scale")
        data = made.inputs["data"].arguments.add()
        if place:
            data.name = f"w{place - 1}"
        else:
            _fill(data.value, np.ones((4, 4, 1, 1), np.int8))
        for name in ("scale", "offset"):
            other = made.inputs[name].arguments.add()
            if place:
                other.name = f"w{place - 1}"  # each twice: a walk over paths would take 2^depth steps
            else:
                _fill(other.value, np.ones((4, 1, 1, 1), HALF))
        _declare(made.outputs.add(name=f"w{place}").type, "fp16", (4, 4, 1, 1))
    block.operations.append(operation)
    return spec


def test_weights_computed_from_weights(tmp_path: Path) -> None:
    assert judged(package(chained(3), tmp_path, "Three")) == "report"
    with pytest.raises(PackageError, match="too many constexpr ops"):
        lint(package(chained(5_000), tmp_path, "Many"))


def nested(depth: int) -> Any:
    """A branch in a branch, `depth` deep."""
    spec = message([("relu", {"x": "@x"}, {"y": ("fp16", MAP)})])
    block = spec.mlProgram.functions["main"].block_specializations["CoreML8"]
    for place in range(depth):
        block = block.operations.add(type="cond").blocks.add()
        _declare(block.operations.add(type="identity").outputs.add(name=f"n{place}").type, "fp16", MAP)
    return spec


def test_blocks_within_blocks(tmp_path: Path) -> None:
    assert judged(package(nested(20), tmp_path, "Twenty")) == "report"
    with pytest.raises(PackageError):
        lint(package(nested(45), tmp_path, "Many"))


@pytest.mark.parametrize("shape", [(1 << 31, 1 << 31), (1 << 62, 1 << 62, 1 << 62), (0, 8)])
def test_shapes_beyond_all_bounds(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Counts are whole numbers of any size, so nothing wraps around."""
    path = package(message([("relu", {"x": "@x"}, {"y": ("fp16", shape)})]), tmp_path)
    try:
        (function,) = lint(path).functions
    except PackageError:
        return
    assert function.flops.total == int(np.prod([int(length) for length in shape], dtype=object))


@pytest.mark.parametrize(
    ("kind", "arguments", "shape"),
    [
        ("conv", {"x": "@x"}, MAP),
        ("conv", {"x": "@x", "weight": HALF(1)}, MAP),
        ("linear", {"x": "@x", "weight": np.ones(4, HALF)}, MAP),
        ("matmul", {"x": "@x"}, ()),
        ("einsum", {"values": "@x", "equation": "bchw,bq->bc"}, MAP),
        ("einsum", {"values": "@x"}, MAP),
        ("scaled_dot_product_attention", {"query": "@x", "key": "@x"}, MAP),
        ("avg_pool", {"x": "@x", "kernel_sizes": np.float32([0.5])}, MAP),
        ("softmax", {}, None),
        ("reduce_sum", {}, MAP),
        ("slice_update", {"x": "@x"}, MAP),
        ("transpose", {}, MAP),
        ("split", {"x": "@x", "axis": np.int32(9)}, MAP),
        ("pad", {"x": "@x", "pad": np.arange(40, dtype=np.int32)}, MAP),
        ("reduce_argmax", {"x": "@x", "axis": np.int32(-99)}, MAP),
    ],
)
def test_ops_without_what_they_need(kind: str, arguments: dict[str, Any], shape: Any, tmp_path: Path) -> None:
    results = {} if shape is None else {"y": ("fp16", shape)}
    assert judged(package(message([(kind, arguments, results)]), tmp_path)) in ("report", "refused")


def test_what_is_no_package(tmp_path: Path) -> None:
    empty = tmp_path / "Empty.mlpackage"
    empty.mkdir()
    with pytest.raises((PackageError, BuildError)):
        lint(empty)
    with pytest.raises(BuildError):
        lint(tmp_path / "absent")
    with pytest.raises(UsageError, match="is a file"):
        lint(__file__)


@pytest.mark.parametrize("make", [lambda: palette((64, 64, 3, 3)), lambda: np.ones((64, 64, 3, 3), HALF)])
def test_weights_that_are_missing(make: Callable[[], Any], tmp_path: Path) -> None:
    """Codes of a palette, and a weight of more numbers than any rule looks into."""
    build = on((1, 64, 8, 32))(lambda x: conv(x, weight=make()))
    path = package(build(), tmp_path)
    weights = path / "Data" / "com" / "weights" / "weight.bin"
    weights.unlink()
    assert judged(path) == "refused"
