"""An update in place never reaches a value that is read later, and is made where it must be: on a KV cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mil_messages import _declare as declare
from mil_messages import add_op, empty_program, give

from validation.mil import MILModel
from validation.mil.aliasing import Effect, writable_in_place

SQUARE = np.float32([[0, 1], [2, 3]])
FIRST_ROW = {"begin": np.int32([0, 0]), "end": np.int32([1, 2])}


def updates_in_place(model: MILModel) -> list[bool]:
    """For every slice_update of the program: whether it writes into its argument."""
    return [step.function is step.inplace for step in model.plan.body.steps if step.type == "slice_update"]


# Ops of which some arguments give back the argument itself, or a view of it: (op, its first parameter, the others).
NOTHING_TO_DO: dict[str, tuple[str, dict[str, Any]]] = {
    "cast": ("x", {"dtype": "fp32"}),
    "einsum": ("values", {"equation": "ij->ij"}),
    "identity": ("x", {}),
    "pad": ("x", {"pad": np.int32([0, 0]), "mode": "reflect"}),
    "reduce_prod": ("x", {"axes": np.zeros(0, np.int32)}),
    "resize": ("x", {"shape": np.zeros(0, np.int32), "resized_dims": np.int32(0)}),
    "reverse": ("x", {"axes": np.zeros(0, np.int32)}),
    "tile": ("x", {"reps": np.int32([1, 1])}),
}


@pytest.mark.parametrize("kind", NOTHING_TO_DO)
def test_an_update_of_an_op_s_result_leaves_its_argument(kind: str) -> None:
    """The updated value may be the very argument of the op that gave it, which is read once more afterwards."""
    first, others = NOTHING_TO_DO[kind]
    row = np.float32([[-1, -1]])
    spec, block = empty_program({"x": SQUARE, "row": row})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    add_op(block, kind, {"b": "fp32"}, {first: "@a", **others})
    add_op(block, "slice_update", {"c": "fp32"}, {"x": "@b", "update": "@row", **FIRST_ROW})
    add_op(block, "add", {"d": "fp32"}, {"x": "@a", "y": "@c"})
    give(spec, block, ["d"])
    for precision in ("fp16", "fp32"):
        got = MILModel(spec, precision=precision).predict({"x": SQUARE, "row": row})["d"]
        assert got.tolist() == [[-1, 0], [4, 6]], precision


@pytest.mark.parametrize(("kind", "gates", "states"), [("rnn", 1, 1), ("gru", 3, 1), ("lstm", 4, 2)])
def test_an_update_of_one_result_leaves_its_siblings(kind: str, gates: int, states: int) -> None:
    """Without its sequence a recurrent layer gives its last step twice, as the output and as the state."""
    rng = np.random.default_rng(0)
    x, row = rng.random((2, 1, 2), dtype=np.float32), np.full((1, 1, 2), -5, np.float32)
    weights = {f"weight_{name}": rng.random((2 * gates, 2), dtype=np.float32) for name in ("ih", "hh")}
    initial = dict(zip(("initial_h", "initial_c"), ["@h"] * states, strict=False))
    results = dict.fromkeys(("y", "last", "cell")[: states + 1], "fp32")
    options = {"x": "@x", **initial, **{name: "@" + name for name in weights}, "output_sequence": False}
    spec, block = empty_program({"x": x, "row": row, "h": np.zeros((1, 2), np.float32), **weights})
    add_op(block, kind, results, options)
    where = {"begin": np.int32([0, 0, 0]), "end": np.int32([1, 1, 2])}
    add_op(block, "mul", {"kept": "fp32"}, {"x": "@y", "y": np.float32(1)})
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@y", "update": "@row", **where})
    give(spec, block, ["u", "last", "kept"])
    feed = {"x": x, "row": row, "h": np.zeros((1, 2), np.float32), **weights}
    got = MILModel(spec, precision="fp32").predict(feed)
    np.testing.assert_array_equal(got["last"], got["kept"][0])
    assert (got["u"] == -5).all()


def test_windows_that_overlap_are_updated_one_by_one() -> None:
    """A view in which one number stands in several places must not be written into."""
    x, row = np.arange(6, dtype=np.float32), np.full((1, 3), -1, np.float32)
    spec, block = empty_program({"x": x, "row": row})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    options = {"axis": np.int32(0), "size": np.int32(3), "stride": np.int32(1)}
    add_op(block, "sliding_windows", {"w": "fp32"}, {"x": "@a", **options})
    where = {"begin": np.int32([1, 0]), "end": np.int32([2, 3])}
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@w", "update": "@row", **where})
    give(spec, block, ["u"])
    got = MILModel(spec, precision="fp32").predict({"x": x, "row": row})["u"]
    assert got.tolist() == [[0, 1, 2], [-1, -1, -1], [2, 3, 4], [3, 4, 5]]


def test_a_place_read_as_numbers_shares_no_memory() -> None:
    """Else one function input would keep a cache from being updated in place."""
    row = SQUARE[:1]
    spec, block = empty_program({"x": SQUARE, "row": row, "at": np.int32([0, 0])})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    add_op(block, "slice_by_index", {"b": "fp32"}, {"x": "@a", "begin": "@at", "end": np.int32([2, 2])})
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@b", "update": "@row", "begin": "@at", "end": np.int32([1, 2])})
    give(spec, block, ["u"])
    model = MILModel(spec)
    assert updates_in_place(model) == [True]
    got = model.predict({"x": SQUARE, "row": row + 5, "at": np.int32([0, 0])})
    assert got["u"].tolist() == [[5, 6], [2, 3]]


def test_what_the_function_was_given_is_never_written_into() -> None:
    """The runtime copies what it is given today, but whose memory it was is not the plan's to know."""
    update = Effect("slice_update", True, True, ("x", "row"), ("u",))
    view = Effect("reshape", False, False, ("x",), ("v",))
    of_view = Effect("slice_update", True, True, ("v", "row"), ("u",))
    computed = Effect("relu", True, False, ("x",), ("v",))
    assert writable_in_place([update], {"u"}, {"x", "row"}) == []
    assert writable_in_place([view, of_view], {"u"}, {"x", "row"}) == []
    assert writable_in_place([replace(view, numbers=frozenset({"x"})), of_view], {"u"}, {"x", "row"}) == [1]
    assert writable_in_place([computed, of_view], {"u"}, {"x", "row"}) == [1]


def test_a_constant_is_there_unchanged_for_the_next_call() -> None:
    spec, block = empty_program({"row": SQUARE[:1]})
    add_op(block, "identity", {"a": "fp32"}, {"x": SQUARE})
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@a", "update": "@row", **FIRST_ROW})
    give(spec, block, ["u"])
    model = MILModel(spec)
    model.predict({"row": SQUARE[1:]})
    (constant,) = (value for value in model.plan.binder.frame() if getattr(value, "shape", None) == (2, 2))
    assert constant.tolist() == SQUARE.tolist()


def test_a_name_defined_twice_keeps_what_is_read_in_between() -> None:
    row = np.float32([[-1, -1]])
    spec, block = empty_program({"x": SQUARE, "row": row})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@a", "update": "@row", **FIRST_ROW})
    add_op(block, "mul", {"b": "fp32"}, {"x": "@a", "y": np.float32(1)})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    give(spec, block, ["u", "b"])
    assert MILModel(spec).predict({"x": SQUARE, "row": row})["b"].tolist() == SQUARE.tolist()


def with_state(arrays: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """A spec and its block with a state s of four numbers."""
    spec, block = empty_program(arrays)
    item = spec.mlProgram.functions["main"].inputs.add(name="s")
    declare(item.type.stateType.wrappedType, "fp32", (4,))
    return spec, block


PAIR = np.float32([7, 8])
FRONT = {"begin": np.int32([0]), "end": np.int32([2])}


def updated_state(block: Any) -> None:
    add_op(block, "read_state", {"r": "fp32"}, {"input": "@s"})
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@r", "update": "@pair", **FRONT})


def run_on_zeros(spec: Any) -> tuple[MILModel, dict[str, np.ndarray], list[float]]:
    model = MILModel(spec)
    state = model.make_state()
    answers = model.predict({"pair": PAIR}, state)
    return model, answers, state.read_state("s").tolist()


def test_an_update_that_is_never_stored_leaves_the_state() -> None:
    spec, block = with_state({"pair": PAIR})
    updated_state(block)
    give(spec, block, ["u"])
    model, answers, state = run_on_zeros(spec)
    assert answers["u"].tolist() == [7, 8, 0, 0]
    assert state == [0, 0, 0, 0]
    assert updates_in_place(model) == [False]


def test_an_update_stored_after_another_read_leaves_what_is_read() -> None:
    spec, block = with_state({"pair": PAIR})
    updated_state(block)
    add_op(block, "read_state", {"old": "fp32"}, {"input": "@s"})
    add_op(block, "mul", {"before": "fp32"}, {"x": "@old", "y": np.float32(1)})
    add_op(block, "write_state", {}, {"input": "@s", "data": "@u"})
    give(spec, block, ["before"])
    _, answers, state = run_on_zeros(spec)
    assert answers["before"].tolist() == [0, 0, 0, 0]
    assert state == [7, 8, 0, 0]


def test_a_state_that_is_given_another_value_next_takes_no_update() -> None:
    spec, block = with_state({"pair": PAIR})
    updated_state(block)
    add_op(block, "add", {"other": "fp32"}, {"x": "@u", "y": np.float32(1)})
    add_op(block, "write_state", {}, {"input": "@s", "data": "@other"})
    give(spec, block, ["u"])
    model, answers, state = run_on_zeros(spec)
    assert answers["u"].tolist() == [7, 8, 0, 0]
    assert state == [8, 9, 1, 1]
    assert updates_in_place(model) == [False]


def test_an_update_that_is_stored_next_is_in_place() -> None:
    spec, block = with_state({"pair": PAIR})
    updated_state(block)
    add_op(block, "write_state", {}, {"input": "@s", "data": "@u"})
    add_op(block, "read_state", {"new": "fp32"}, {"input": "@s"})
    give(spec, block, ["new"])
    model, answers, state = run_on_zeros(spec)
    assert answers["new"].tolist() == state == [7, 8, 0, 0]
    assert updates_in_place(model) == [True]


def test_a_place_that_is_itself_updated_in_place_is_read_anew() -> None:
    """The state's tensor is the same object at every call, with another number in it."""
    x = np.float32([1, 2, 3, 4])
    spec, block = empty_program({"x": x, "next": np.int32([1])})
    item = spec.mlProgram.functions["main"].inputs.add(name="s")
    declare(item.type.stateType.wrappedType, "int32", (1,))
    add_op(block, "read_state", {"at": "int32"}, {"input": "@s"})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    where = {"begin": "@at", "end": np.int32([4])}
    add_op(block, "slice_by_index", {"tail": "fp32"}, {"x": "@x", **where})
    add_op(block, "mul", {"scaled": "fp32"}, {"x": "@tail", "y": np.float32(10)})
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@a", "update": "@scaled", **where})
    whole = {"begin": np.int32([0]), "end": np.int32([1])}
    add_op(block, "slice_update", {"moved": "int32"}, {"x": "@at", "update": "@next", **whole})
    add_op(block, "write_state", {}, {"input": "@s", "data": "@moved"})
    give(spec, block, ["u"])
    model = MILModel(spec)
    assert updates_in_place(model) == [True, True]
    state = model.make_state()
    for start, want in ((1, [10, 20, 30, 40]), (3, [1, 20, 30, 40]), (0, [1, 2, 3, 40])):
        assert model.predict({"x": x, "next": np.int32([start])}, state)["u"].tolist() == want


def test_an_update_with_a_part_of_what_it_updates() -> None:
    """The part is a view: writing into its source would change it while it is read."""
    x = np.arange(300, dtype=np.float32)
    spec, block = empty_program({"x": x})
    add_op(block, "relu", {"a": "fp32"}, {"x": "@x"})
    add_op(block, "slice_by_index", {"part": "fp32"}, {"x": "@a", "begin": np.int32([0]), "end": np.int32([299])})
    where = {"begin": np.int32([1]), "end": np.int32([300])}
    add_op(block, "slice_update", {"u": "fp32"}, {"x": "@a", "update": "@part", **where})
    give(spec, block, ["u"])
    model = MILModel(spec)
    assert updates_in_place(model) == [False]
    np.testing.assert_array_equal(model.predict({"x": x})["u"], [0, *range(299)])
