"""A package that asks for a product without end is refused before it begins: an op by its shapes, a call by its sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ordeal import Case, in_lines, try_all
from package_cases import ran
from stranger_packages import Program, declare

from validation.mil import MILModel, work
from validation.mil import ops as _ops  # noqa: F401  (registers every op)
from validation.mil.registry import OPS
from validation.mil.work import MOST_OF_AN_OP, bounded, within_work

MEMORY = 2 << 30  # bytes: operands of a product that is too large take some themselves


def filled(made: Program, name: str, dtype: str, shape: list[int]) -> str:
    value = np.float16(1) if dtype == "fp16" else np.float32(1)
    return made.op("fill", name, dtype, shape, shape=np.int32(shape), value=value)


def product(made: Program) -> str:
    """2^40, of two operands that take 0.4 GB together."""
    x, y = filled(made, "left", "fp16", [1 << 13, 1 << 13]), filled(made, "right", "fp16", [1 << 13, (1 << 14) + 1])
    return made.op("matmul", "product", "fp16", (1 << 13, (1 << 14) + 1), x=x, y=y)


def window(made: Program) -> str:
    """A window of 2,000 × 2,000 at 2,000 × 2,000 places: 2^48."""
    x = filled(made, "map", "fp32", [1, 1, 3_999, 3_999])
    given: dict[str, Any] = {"kernel_sizes": np.int32([2_000] * 2), "strides": np.int32([1, 1]), "pad_type": "valid"}
    return made.op("max_pool", "window", "fp32", (1, 1, 2_000, 2_000), x=x, pad=np.int32([0] * 4), **given)


def steps(made: Program) -> str:
    """A recurrent layer of one value and 4 million steps."""
    x, start = filled(made, "row", "fp32", [1 << 22, 1, 1]), filled(made, "start", "fp32", [1, 1])
    one = np.ones((1, 1), np.float32)
    given = {"x": x, "initial_h": start, "weight_ih": one, "weight_hh": one, "output_sequence": False}
    operation = made.none("rnn", "steps", direction="forward", activation="tanh", **given)
    for name, shape in (("last", (1, 1, 1)), ("state", (1, 1))):
        declare(operation.outputs.add(name=name).type, "fp32", shape)
    return "@last"


def boxes(made: Program) -> str:
    """A million boxes, each of which may be kept."""
    count = 1 << 20
    given: dict[str, Any] = {"iou_threshold": np.float32(1), "max_boxes": np.int32(count)}
    places, scores = filled(made, "places", "fp32", [1, 4, count]), filled(made, "scores", "fp32", [1, 1, count])
    operation = made.none("non_maximum_suppression", "boxes", boxes=places, scores=scores, **given)
    for name, dtype, shape in (
        ("kept", "fp32", (1, 4, count)), ("best", "fp32", (1, 1, count)), ("indices", "int32", (1, count)),
    ):  # fmt: skip
        declare(operation.outputs.add(name=name).type, dtype, shape)
    return "@indices"


def made_cases(folder: Path) -> list[Case]:
    """One package for each kind of work; each must be refused with the op's name."""

    def refused(make: Callable[[Program], str]) -> None:
        made = Program()
        made.input("x", "fp32", (1,))
        made.give(make(made))
        package = made.write(folder / f"{make.__name__}.mlpackage")
        ran(package)
        raise AssertionError("it ran")

    return [(make.__name__, lambda make=make: refused(make)) for make in (product, window, steps, boxes)]  # type: ignore[misc]


def test_an_op_that_asks_for_years_is_named(tmp_path: Path) -> None:
    outcomes = try_all(made_cases(tmp_path), seconds=10, memory=MEMORY)
    assert [one.kind for one in outcomes] == ["named"] * 4, in_lines(outcomes)
    for one in outcomes:
        assert f"op '{one.name}'" in one.detail, one
        assert "multiplications, at most 549,755,813,888 are done for one op" in one.detail, one


def test_without_the_limit_each_of_them_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MOST_OF_AN_OP", 1 << 99)
    monkeypatch.setattr(work, "MOST_OF_A_CALL", 1 << 99)
    outcomes = try_all(made_cases(tmp_path), seconds=0.8, memory=MEMORY)
    assert [one.kind for one in outcomes] == ["timeout"] * 4, in_lines(outcomes)


def looping(folder: Path) -> MILModel:
    """10 rounds of one product of 2^12 multiplications."""
    made = Program()
    made.input("x", "fp32", (16, 16))
    loop = made.none("while_loop", "loop", loop_vars=[np.float32(0), "@x"])
    for kind in ("less", "add"):
        block = loop.blocks.add()
        for name, shape in (("count", ()), ("value", (16, 16))):
            declare(block.inputs.add(name=f"{kind}{name}").type, "fp32", shape)
        y = np.float32(10 if kind == "less" else 1)
        result = made.op(kind, f"{kind}ing", "bool" if kind == "less" else "fp32", (), block, x=f"@{kind}count", y=y)
        block.outputs.append(result[1:])
        if kind == "add":
            product = made.op("matmul", "squared", "fp32", (16, 16), block, x="@addvalue", y="@addvalue")
            block.outputs.append(product[1:])
    for name, shape in (("rounds", ()), ("looped", (16, 16))):
        declare(loop.outputs.add(name=name).type, "fp32", shape)
    made.give("@looped")
    return MILModel(made.write(folder / "loop.mlpackage"))


def test_what_a_call_asks_for_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = looping(tmp_path)
    given = {"x": np.zeros((16, 16), np.float32)}
    monkeypatch.setattr(work, "MOST_OF_A_CALL", 10 << 12)
    for _ in range(2):  # each call begins anew
        model.predict(given)
    monkeypatch.setattr(work, "MOST_OF_A_CALL", (10 << 12) - 1)
    (outcome,) = try_all([("loop", lambda: model.predict(given))])
    assert outcome.kind == "named"
    assert "op 'squared' (matmul): with it this call asks for more than 40,959 multiplications" in outcome.detail


def updates(folder: Path, count: int = 10_000) -> Path:
    """Updates of a slice, each of the result of the one before it: all of them may lie where the first one does."""
    made = Program()
    made.input("x", "fp16", (4,))
    held = filled(made, "filled", "fp16", [4])
    given: dict[str, Any] = {"update": np.float16([0]), "begin": np.int32([0]), "end": np.int32([1])}
    first = made.none("slice_update", "y0", x=held, **given)
    declare(first.outputs.add(name="y0").type, "fp16", (4,))
    for index in range(1, count):
        operation = made.block.operations.add()
        operation.CopyFrom(first)
        operation.outputs[0].name = f"y{index}"
        operation.inputs["x"].arguments[0].name = f"y{index - 1}"
    made.give(f"@y{count - 1}")
    return made.write(folder / "updates.mlpackage")


def test_updates_are_looked_at_up_to_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = updates(tmp_path)
    (outcome,) = try_all([("updates", lambda: MILModel(package))])
    assert outcome.kind == "passed", outcome
    monkeypatch.setattr("validation.mil.aliasing.MOST_UPDATES", 1 << 40)
    (outcome,) = try_all([("updates", lambda: MILModel(package))], seconds=max(3.0, 2 * outcome.seconds))
    assert outcome.kind == "timeout", outcome


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


COUNTED: list[tuple[str, tuple[Any, ...], int]] = [
    ("linear", (ones(2, 3, 8), ones(5, 8)), 2 * 3 * 8 * 5),
    ("matmul", (ones(3, 8), ones(8, 5)), 3 * 8 * 5),
    ("matmul", (ones(8, 3), ones(5, 8), True, True), 3 * 8 * 5),
    ("matmul", (ones(4, 1, 3, 8), ones(2, 8, 5)), 4 * 2 * 3 * 8 * 5),
    ("matmul", (ones(8), ones(8, 5)), 8 * 5),
    ("matmul", (ones(3, 8), ones(8)), 3 * 8),
    ("scaled_dot_product_attention", (ones(2, 3, 8), ones(2, 7, 8), ones(2, 7, 5)), 2 * 3 * 7 * (8 + 5)),
    ("einsum", ((ones(2, 8), ones(3, 8)), "ij, kj -> ik"), 2 * 8 * 3),
    ("conv", (ones(1, 4, 9, 9), ones(6, 2, 3, 3), None, (2, 2), "valid", None, None, 2), 16 * 6 * 2 * 9),
    ("conv", (ones(1, 4, 9), ones(6, 4, 3), None, (1,), "same", None, (2,)), 9 * 6 * 4 * 3),
    ("conv", (ones(1, 4, 9), ones(6, 4, 3), None, None, "custom", (2, 1)), 10 * 6 * 4 * 3),
    ("conv_transpose", (ones(1, 4, 9), ones(4, 6, 3)), 9 * 4 * 6 * 3),
    ("max_pool", (ones(1, 4, 9, 9), (3, 3), "valid", (3, 3)), 16 * 4 * 9 * 9),
    ("lstm", (ones(5, 2, 3), ones(2, 4), ones(2, 4), ones(16, 3), ones(16, 4)), 5 << 20),
    ("non_maximum_suppression", (ones(2, 4, 10), ones(2, 1, 10), 0.5, 3), 32 * 2 * 10 * 3),
]


@pytest.mark.parametrize(("name", "given", "count"), COUNTED, ids=lambda value: value if isinstance(value, str) else "")
def test_counts_are_those_of_the_plain_algorithm(
    name: str, given: tuple[Any, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    monkeypatch.setattr(work, "_spend", found.append)
    bounded(OPS[name]).function(*given)
    assert found == [count]


def test_there_is_room_for_the_largest_model() -> None:
    """7B with 4,096 rows at once, of which each of 28 layers multiplies 233 million weights; and a head."""
    rows, hidden, wide, vocabulary, layers = 4096, 3584, 18944, 152064, 28
    assert rows * hidden * wide * 1.9 < MOST_OF_AN_OP
    layer = hidden * (2 * hidden + 2 * 512) + 3 * hidden * wide
    whole = rows * (layers * (layer + 2 * rows * hidden)) + hidden * vocabulary
    with within_work():
        assert work._left.count is not None
        assert whole * 2 < work._left.count
    assert work._left.count is None
