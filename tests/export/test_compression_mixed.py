"""How a budget is spent."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.compression.mixed import Measured, choose
from export.compression.recipe import Budget
from export.compression.schemes import SCHEMES
from fastvlm.errors import UsageError

NAMES = ("lut4", "lut6", "int8")
SHAPES = {"a": (64, 64), "b": (64, 128), "c": (96, 64), "d": (32, 64)}
WEIGHTS = sum(math.prod(shape) for shape in SHAPES.values())


def measured(errors: list[float]) -> dict[str, Measured]:
    return {name: Measured(error, -10 * math.log10(error)) for name, error in zip(NAMES, errors, strict=True)}


def spent(found: dict[str, object]) -> int:
    return sum(
        scheme.bytes(SHAPES[name]) if scheme else 2 * math.prod(SHAPES[name])  # type: ignore[attr-defined]
        for name, scheme in found.items()
    )


def lost(found: dict[str, object], costs: dict[str, dict[str, Measured]]) -> float:
    return sum(costs[name][scheme.name].error if scheme else 0.0 for name, scheme in found.items())  # type: ignore[attr-defined]


errors = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3)


@given(st.lists(errors, min_size=4, max_size=4), st.floats(4.6, 16.0))
def test_the_budget_is_kept_and_well_spent(all_errors: list[list[float]], bits: float) -> None:
    costs = {name: measured(found) for name, found in zip(SHAPES, all_errors, strict=True)}
    found = choose(Budget("bits", bits), SHAPES, costs)
    assert spent(found) <= bits * WEIGHTS / 8
    # Whoever takes at least as little room for every weight loses at least as much, but for the last step.
    options = [SCHEMES[name] for name in NAMES] + [None]
    best = min(
        lost(trial, costs)
        for choice in itertools.product(options, repeat=4)
        if spent(trial := dict(zip(SHAPES, choice, strict=True))) <= bits * WEIGHTS / 8
    )
    largest = max(found.error for cost in costs.values() for found in cost.values())
    assert best - 1e-12 <= lost(found, costs) <= best + largest


def test_a_step_goes_where_it_takes_most_error_away() -> None:
    costs = {name: measured([1e-2, 1e-3, 1e-4]) for name in SHAPES} | {"d": measured([0.9, 1e-3, 1e-4])}
    room = sum(SCHEMES["lut4"].bytes(shape) for shape in SHAPES.values()) + 700
    found = choose(Budget("bits", 8 * room / WEIGHTS), SHAPES, costs)
    assert {name: scheme and scheme.name for name, scheme in found.items()} == {
        "a": "lut4", "b": "lut4", "c": "lut4", "d": "lut6",
    }  # fmt: skip


def test_a_poor_step_does_not_hide_the_good_one_behind_it() -> None:
    costs = {name: measured([1e-2, 1e-3, 1e-4]) for name in SHAPES} | {"d": measured([0.9, 0.899, 1e-4])}
    room = sum(SCHEMES["lut4"].bytes(shape) for shape in SHAPES.values())
    room += 1300  # enough for d's 1,056 to int8, or for a's 1,216 to lut6
    found = choose(Budget("bits", 8 * room / WEIGHTS), SHAPES, costs)
    assert {name: scheme and scheme.name for name, scheme in found.items()} == {
        "a": "lut4", "b": "lut4", "c": "lut4", "d": "int8",
    }  # fmt: skip


def test_second_steps_are_weighed_too() -> None:
    shapes = {"a": (64, 64), "b": (64, 64)}
    costs = {"a": measured([0.9, 0.2, 0.05]), "b": measured([0.9, 0.2, 1e-3])}
    room = (
        2 * SCHEMES["lut6"].bytes(shapes["a"]) + SCHEMES["int8"].bytes(shapes["a"]) - SCHEMES["lut6"].bytes(shapes["a"])
    )
    found = choose(Budget("bits", 8 * (room + 1) / 8192), shapes, costs)
    assert found == {"a": SCHEMES["lut6"], "b": SCHEMES["int8"]}


def test_a_full_budget_is_fp16() -> None:
    costs = {name: measured([1e-2, 1e-3, 1e-4]) for name in SHAPES}
    assert set(choose(Budget("bits", 16.0), SHAPES, costs).values()) == {None}


def test_a_budget_that_nothing_fits_names_one_that_does() -> None:
    costs = {name: measured([1e-2, 1e-3, 1e-4]) for name in SHAPES}
    with pytest.raises(
        UsageError, match=r"bits is 4, these weights take 4\.\d+ at least; write \{bits: 4\.\d\d\}"
    ) as caught:
        choose(Budget("bits", 4.0), SHAPES, costs)
    enough = float(str(caught.value).rpartition("bits: ")[2].rstrip("}"))
    assert {scheme and scheme.name for scheme in choose(Budget("bits", enough), SHAPES, costs).values()} <= {
        "lut4",
        "int8",
    }


def test_snr_takes_the_smallest_that_keeps_it() -> None:
    costs = {"a": measured([1e-3, 1e-4, 1e-5]), "b": measured([1e-1, 1e-2, 1e-3]), "c": measured([0.5, 0.4, 0.3])}
    found = choose(Budget("snr_db", 20.0), SHAPES, costs)
    assert found == {"a": SCHEMES["lut4"], "b": SCHEMES["lut6"], "c": None}
