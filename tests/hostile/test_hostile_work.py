"""A package that asks for a product without end is refused before it begins: an op by its shapes, a call by its sum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ordeal import Case, in_lines, try_all
from package_cases import ran
from stranger_packages import Program, declare

from validation.mil import MILModel, allowance, work
from validation.mil import ops as _ops  # noqa: F401  (registers every op)
from validation.mil.allowance import most_of_a_call, within_work
from validation.mil.ops.packed import PackedLinear, is_here
from validation.mil.registry import OPS
from validation.mil.work import FUNCTION, MOST_OF_AN_OP, PLAIN, SLOW, SORTED, STEP, bounded

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
    for name in ("MOST_WITHOUT_WEIGHTS", "MOST_OF_A_CALL"):
        monkeypatch.setattr(allowance, name, 1 << 99)
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
    most = spent(model, given)
    assert most > 10 * (STEP + (1 << 12) + 3 * 16 * 16 * PLAIN)  # of the products alone, of which each is made and read
    monkeypatch.setattr(allowance, "MOST_WITHOUT_WEIGHTS", most)
    for _ in range(2):  # each call begins anew
        model.predict(given)
    monkeypatch.setattr(allowance, "MOST_WITHOUT_WEIGHTS", most // 2)
    (outcome,) = try_all([("loop", lambda: model.predict(given))])
    assert outcome.kind == "named"
    assert f"with it this call asks for more than {most // 2:,} multiplications" in outcome.detail


def spent(model: MILModel, given: dict[str, Any]) -> int:
    """What a call spends in all."""
    found: list[allowance.Allowance] = []

    class Watched(allowance.Allowance):
        def __init__(self, count: int):
            super().__init__(count)
            found.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allowance, "Allowance", Watched)
        model.predict(given)
    (one,) = found
    return one.all - one.left


SIDE = 512


def chain(name: str, count: int, **options: Any) -> Callable[[Path], MILModel]:
    """`count` ops of one kind, each of what the one before it made."""

    def made(folder: Path) -> MILModel:
        made = Program()
        made.input("x", "fp32", (1,))
        value = filled(made, "filled", "fp32", [SIDE, SIDE])
        for index in range(count):
            value = made.op(name, f"{name}{index}", "fp32", (SIDE, SIDE), x=value, **options)
        made.give(value)
        return MILModel(made.write(folder / f"{name}.mlpackage"))

    return made


def sums(constant: bool, folder: Path) -> MILModel:
    """Sums of one map: of a constant, or of what an op made."""
    made = Program()
    made.input("x", "fp32", (1,))
    held = np.ones((SIDE, SIDE), np.float32) if constant else filled(made, "filled", "fp32", [SIDE, SIDE])
    for index in range(4):
        last = made.op(
            "reduce_sum", f"sum{index}", "fp32", (), x=held, axes=np.int32([0, 1]), keep_dims=np.bool_(False)
        )
    made.give(last)
    return MILModel(made.write(folder / "sums.mlpackage"))


def parts(folder: Path) -> MILModel:
    """An op of several results, which nobody reads."""
    made = Program()
    made.input("x", "fp32", (1,))
    held = filled(made, "filled", "fp32", [SIDE, SIDE])
    operation = made.none("split", "parts", x=held, axis=np.int32(0), num_splits=np.int32(2))
    for name in ("left", "right"):
        declare(operation.outputs.add(name=name).type, "fp32", (SIDE // 2, SIDE))
    made.give("@left", "@right")
    return MILModel(made.write(folder / "parts.mlpackage"))


CUMSUM = {"axis": np.int32(0), "exclusive": np.bool_(False), "reverse": np.bool_(True)}
ASKED: dict[str, tuple[Callable[[Path], MILModel], int]] = {
    "sin": (chain("sin", 3), 3 * 2 * FUNCTION),
    "cumsum": (chain("cumsum", 2, **CUMSUM), 2 * 2 * SLOW),
    "a constant": (partial(sums, True), 4 * PLAIN),
    "what was made": (partial(sums, False), 5 * PLAIN),
    "parts": (parts, 3 * PLAIN),
}


@pytest.mark.parametrize("kind", ASKED)
def test_values_are_spent_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """All that is read and made: 40 sums along a map of 8,000 × 8,000 took 38 s, and 100,000 ops are allowed."""
    make, values = ASKED[kind]
    model, given = make(tmp_path), {"x": np.zeros(1, np.float32)}
    most = spent(model, given)
    assert values * SIDE * SIDE <= most < (values + PLAIN + 1) * SIDE * SIDE + 8 * (STEP << 1)
    monkeypatch.setattr(allowance, "MOST_WITHOUT_WEIGHTS", most)
    model.predict(given)
    monkeypatch.setattr(allowance, "MOST_WITHOUT_WEIGHTS", values * SIDE * SIDE // 2)
    (outcome,) = try_all([(kind, lambda: model.predict(given))])
    assert outcome.kind == "named", outcome
    assert "with it this call asks for more than" in outcome.detail


ROWS, WIDE = 256, 1024


def test_a_weight_in_its_own_layout_is_spent_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Program()
    x, weight = filled(made, "rows", "fp16", [ROWS, WIDE]), np.ones((WIDE, WIDE), np.float16)
    made.give(made.op("linear", "product", "fp16", (ROWS, WIDE), x=x, weight=weight))
    made.input("y", "fp32", (1,))
    model, given = MILModel(made.write(tmp_path / "linear.mlpackage")), {"y": np.zeros(1, np.float32)}
    laid_out = any(isinstance(value, PackedLinear) for value in model.plan.binder.frame())
    assert laid_out or not is_here()
    least = ROWS * WIDE * WIDE + PLAIN * (WIDE * WIDE + 3 * ROWS * WIDE)
    assert least <= spent(model, given) < least + 8 * STEP
    monkeypatch.setattr(work, "MOST_OF_AN_OP", ROWS * WIDE * WIDE - 1)
    (outcome,) = try_all([("linear", lambda: model.predict(given))])
    assert outcome.kind == "named", outcome
    assert "op 'product' (linear): it asks for 268,435,456 multiplications" in outcome.detail


MANY = 20


def rows_of_a_table(folder: Path) -> Path:
    made = Program()
    made.input("x", "fp32", (1,))
    table = np.ones((SIDE, SIDE), np.float16)
    for index in range(MANY):
        row = made.op("gather", f"row{index}", "fp16", (1, SIDE), x=table, indices=np.int32([index]), axis=np.int32(0))
    made.give(row)
    return made.write(folder / "rows.mlpackage")


@pytest.mark.parametrize("make", [rows_of_a_table, lambda folder: updates(folder, MANY, SIDE * SIDE)])
def test_what_is_not_touched_is_not_spent(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """A row of a table, and a value that is written where it lies: a decoder has thousands of both in a call."""
    model = MILModel(make(tmp_path))
    (name,) = model.plan.inputs
    given = {name: np.zeros(model.plan.inputs[name].shape, np.float32)}
    assert spent(model, given) < 3 * SIDE * SIDE * PLAIN + 3 * MANY * STEP


def test_a_package_of_a_kilobyte_is_given_little(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call may compute grows with the weights that come along."""
    package = exported_tiny / "VisionEncoder.mlpackage"
    model = MILModel(package)
    given = {"image": np.zeros((256, 256, 3), np.uint8)}
    monkeypatch.setattr(allowance, "MOST_WITHOUT_WEIGHTS", 0)
    assert spent(model, given) < most_of_a_call(model.package.weight_bytes)
    assert model.package.weight_bytes == sum(path.stat().st_size for path in package.rglob("weight.bin"))
    monkeypatch.setattr(allowance, "MOST_FOR_A_BYTE", 0)
    (outcome,) = try_all([("encoder", lambda: model.predict(given))])
    assert outcome.kind == "named", outcome


def updates(folder: Path, count: int = 10_000, values: int = 4) -> Path:
    """Updates of a slice, each of the result of the one before it: all of them may lie where the first one does."""
    made = Program()
    made.input("x", "fp16", (4,))
    held = filled(made, "filled", "fp16", [values])
    given: dict[str, Any] = {"update": np.float16([0]), "begin": np.int32([0]), "end": np.int32([1])}
    first = made.none("slice_update", "y0", x=held, **given)
    declare(first.outputs.add(name="y0").type, "fp16", (values,))
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
    ("non_maximum_suppression", (ones(2, 4, 10), ones(2, 1, 10), 0.5, 3), 2 * (10 * STEP // 8 + 3 * 8 * STEP)),
    ("matmul", (ones(600, 40, 40), ones(600, 40, 40)), 600 * STEP),  # many small matrices, one after another
    ("local_response_norm", (ones(1, 4, 9, 9), 3), 4 * 81 * 3 * 64),
    ("scatter", (ones(5), torch.tensor([1, 2]), ones(2), 0, "add"), 0),
    ("scatter", (ones(5), torch.tensor([1, 2]), ones(2), 0, "mul"), 2 * STEP),  # one row after another
    ("scatter_nd", (ones(5), torch.tensor([[1], [2]]), ones(2), "max"), 2 * STEP),
    ("gather", (ones(3, 5), torch.zeros(3, 1, dtype=torch.int32), 1, 1), 3 * STEP),
    ("gather_nd", (ones(3, 5), torch.zeros(3, 1, dtype=torch.int32), 1), 3 * STEP),
    ("resize_bilinear", (ones(2, 3, 4, 4), 8, 16), 6 * 8 * 16 * SLOW),
    ("upsample_bilinear", (ones(2, 3, 4, 4), 2.0, 4.0), 6 * 8 * 16 * SLOW),
    ("resize", (ones(2, 3, 4, 4), (0, 16), 2), 6 * 4 * 16 * SLOW),
    ("resample", (ones(2, 3, 4, 4), ones(2, 5, 6, 2), "bilinear", "constant", 0.0, "unnormalized", True), 180 * SLOW),
    ("random_categorical", (ones(2, 5), "probs", 7, 1), 2 * 7 * SORTED),
    ("reverse_sequence", (ones(3, 5), (1, 2, 3), 1, 0), 12 * STEP),
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
    """7B with 4,096 rows at once: 28 layers of 233 million weights and a head, at four bits a weight."""
    rows, hidden, wide, vocabulary, layers, heads = 4096, 3584, 18944, 152064, 28, 28
    assert rows * hidden * wide * 1.9 < MOST_OF_AN_OP
    layer = hidden * (2 * hidden + 2 * 512) + 3 * hidden * wide
    whole = rows * (layers * (layer + 2 * rows * hidden)) + hidden * vocabulary
    maps, wide_rows, narrow_rows = heads * rows * rows, rows * wide, rows * hidden
    values = maps * (6 * PLAIN + 2 * FUNCTION) + wide_rows * 8 * PLAIN + narrow_rows * (30 * PLAIN + 10 * FUNCTION)
    weights = layers * layer + hidden * vocabulary
    spends = whole + layers * values + weights * PLAIN
    assert spends * 2 < most_of_a_call(weights // 2)
    with within_work(weights // 2):
        assert allowance.allowance().left == most_of_a_call(weights // 2)
    assert allowance.allowance().left == 1 << 99


def test_there_is_room_for_the_largest_pictures() -> None:
    """FastViTHD at 3648, which makes the largest map that a program may declare, with its weights at four bits.

    It was measured to spend 2^39.53 at 1024, 2^41.93 at 2048 and 2^43.61 at 3072: what grows by the area, and by its
    square, of stages of attention.
    """
    by_area, by_its_square, bytes_at_four_bits = 7.10e11, 0.84e11, 63_590_464
    for side, logarithm in ((1024, 39.53), (2048, 41.93), (3072, 43.61), (3648, 44.36)):
        spends = by_area * (side / 1024) ** 2 + by_its_square * (side / 1024) ** 4
        assert spends == pytest.approx(2**logarithm, rel=0.02)
        assert spends * 1.4 < most_of_a_call(bytes_at_four_bits), side
