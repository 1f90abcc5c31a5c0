"""Choices under a budget, held against every possible assignment of small tables."""

from __future__ import annotations

import io
import itertools
import json
import math
import random

import pytest
from rich.console import Console

from export.compression.budget import Assignment, QualityBudget, SizeBudget, choose
from export.compression.schemes import SCHEMES
from export.compression.table import QUIETEST, Candidate, Row, Table, decibels, total_decibel
from fastvlm.commands.compression import show_compression
from fastvlm.errors import UsageError

ANE = ("int8", "lut6", "lut4")
SHAPES = {
    "layers.0.self_attn.q_proj": (64, 64),
    "layers.0.self_attn.k_proj": (32, 64),
    "layers.0.mlp.up_proj": (96, 64),
    "layers.1.mlp.up_proj": (96, 64),
    "lm_head": (320, 64),
}


def drawn(seed: int, *, names: tuple[str, ...] = ANE) -> Table:
    """A table with drawn noises, now and then with a candidate that is worse than a cheaper one."""
    rng = random.Random(seed)
    rows = []
    for layer, shape in SHAPES.items():
        level = rng.uniform(-40, -15)
        noises = (level - 3 * SCHEMES[name].bits + rng.uniform(-8, 8) for name in names)
        found = zip(names, noises, strict=True)
        made = tuple(Candidate(SCHEMES[name], SCHEMES[name].bytes(shape), round(noise, 2)) for name, noise in found)
        rows.append(Row(layer, shape, made))
    return Table(tuple(rows))


def every_assignment(table: Table) -> list[Assignment]:
    """All of them; 243 for five layers."""
    layers = [row.layer for row in table.rows]
    products = itertools.product(*(row.candidates for row in table.rows))
    return [Assignment(dict(zip(layers, chosen, strict=True)), table.weights) for chosen in products]


def chosen(table: Table, budget: SizeBudget | QualityBudget) -> Table:
    return table.with_choice(choose(table, budget))


@pytest.mark.parametrize("seed", range(12))
def test_size_budgets_against_all_assignments(seed: int) -> None:
    """Within budget; as good as any of its own size; and what is missing to the best is less than one more step."""
    table = drawn(seed)
    everything = every_assignment(table)
    least, most = (f(one.bits for one in everything) for f in (min, max))
    found = [chosen(table, SizeBudget(least + (most - least) * part / 40)) for part in range(42)]
    for part, one in enumerate(found):
        budget = least + (most - least) * part / 40
        assert one.bits <= budget
        noise = 10 ** (one.decibel / 10)
        best = min(10 ** (other.decibel / 10) for other in everything if other.bits <= budget + 1e-12)
        later = [10 ** (other.decibel / 10) for other in found if other.bits > one.bits]
        assert noise - best <= noise - max(later, default=noise) + 1e-15
    noises = [one.decibel for one in found]
    assert noises == sorted(noises, reverse=True)
    assert noises[-1] == pytest.approx(min(one.decibel for one in everything))


@pytest.mark.parametrize("seed", range(12))
def test_what_is_chosen_is_the_best_of_its_own_size(seed: int) -> None:
    """For the four layers beside the largest, whose every candidate is tried."""
    table = drawn(seed)
    everything = every_assignment(table)
    for bits in (5.0, 6.0, 7.0):
        one = chosen(table, SizeBudget(bits))
        head = one.rows[-1].choice
        for other in everything:
            if other.chosen["lm_head"] == head and other.bits <= one.bits + 1e-12:
                assert other.decibel >= one.decibel - 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_quality_budgets_against_all_assignments(seed: int) -> None:
    table = drawn(seed)
    everything = every_assignment(table)
    least, most = (f(one.decibel for one in everything) for f in (min, max))
    bits = []
    for part in range(21):
        budget = least + (most - least) * part / 20 + 1e-9
        one = chosen(table, QualityBudget(budget))
        assert one.decibel <= budget
        largest_step = 8 * max(row.candidates[0].bytes - row.candidates[-1].bytes for row in table.rows[:-1])
        best = min(other.bits for other in everything if other.decibel <= budget)
        assert one.bits <= best + largest_step / table.weights + 1e-12
        bits.append(one.bits)
    assert bits == sorted(bits, reverse=True)


def test_the_largest_layer_does_not_strand_a_budget() -> None:
    """A head of more than half the weights, whose steps come first and do not fit: the rest is still spent."""
    rows = [*drawn(3).rows[:-1]]
    shape = (4096, 64)
    head = tuple(
        Candidate(SCHEMES[name], SCHEMES[name].bytes(shape), level)
        for name, level in zip(ANE, (-30.0, -10.0, 20.0), strict=True)
    )
    table = Table((*rows, Row("lm_head", shape, head)))
    cheapest = chosen(table, SizeBudget(8 * sum(row.candidates[-1].bytes for row in table.rows) / table.weights))
    more = chosen(table, SizeBudget(cheapest.bits + 0.2))
    assert more.rows[-1].chosen == "lut4"
    assert more.bits > cheapest.bits + 0.1


def test_ties_are_broken_by_name_whatever_the_order() -> None:
    """Two layers alike in everything: the first by name gets the only step that fits."""
    rows = {
        layer: Row(layer, (64, 64), tuple(Candidate(SCHEMES[n], SCHEMES[n].bytes((64, 64)), d) for n, d in pairs))
        for layer in ("a", "b", "c")
        for pairs in [[("int8", -40.0), ("lut4", -20.0)]]
    }
    for order in itertools.permutations(rows):
        table = Table(tuple(rows[layer] for layer in order))
        steps = (SCHEMES["int8"].bytes((64, 64)) - SCHEMES["lut4"].bytes((64, 64))) * 8 / table.weights
        found = choose(table, SizeBudget(SCHEMES["lut4"].bytes((64, 64)) * 24 / table.weights + 1.5 * steps))
        assert [layer for layer in sorted(found) if found[layer].name == "int8"] == ["a"]


def test_one_candidate_leaves_no_choice() -> None:
    table = drawn(1, names=("int8",))
    assert {scheme.name for scheme in choose(table, SizeBudget(9.0)).values()} == {"int8"}
    assert list(choose(table, SizeBudget(9.0))) == list(SHAPES)


@pytest.mark.parametrize("bits", [1.0, -3.0, math.nan, math.inf])
def test_a_size_that_cannot_be_met_names_the_range(bits: float) -> None:
    table = drawn(5)
    with pytest.raises(UsageError, match=r"size budget is .* bits a weight.* this model reaches") as error:
        choose(table, SizeBudget(bits))
    low = float(str(error.value).split("reaches ")[1].split(" to ")[0])
    assert choose(table, SizeBudget(low))


@pytest.mark.parametrize("decibel", [-150.0, math.nan, math.inf, -math.inf])
def test_a_quality_that_cannot_be_met_names_the_range(decibel: float) -> None:
    table = drawn(5)
    with pytest.raises(UsageError, match=r"quality budget is snr_db .* this model reaches") as error:
        choose(table, QualityBudget(decibel))
    most = float(str(error.value).split(" to ")[1].split(" dB")[0])
    assert choose(table, QualityBudget(-most))
    with pytest.raises(UsageError):
        choose(table, QualityBudget(-most - 0.02))


def test_the_table_as_a_manifest_holds_it() -> None:
    table = chosen(drawn(2), SizeBudget(6.0))
    found = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert found["bits"] == pytest.approx(8 * sum(row.choice.bytes for row in table.rows) / table.weights, abs=1e-3)
    assert found["noise_db"] == pytest.approx(total_decibel([row.choice for row in table.rows]), abs=0.01)
    assert [row["layer"] for row in found["layers"]] == list(SHAPES)
    assert all(row["noise_db"].keys() == set(ANE) and row["scheme"] in ANE for row in found["layers"])
    with pytest.raises(ValueError, match="nothing was chosen for layers"):
        drawn(2).as_json()


def test_decibels() -> None:
    assert decibels(0.01) == -20.0
    assert decibels(0.0) == decibels(1e-30) == QUIETEST
    assert decibels(0.123456) == -9.08
    tenth = Candidate(SCHEMES["int8"], 1, -20.0)
    assert total_decibel([tenth] * 10) == pytest.approx(-10.0)


def test_the_table_on_a_terminal() -> None:
    stream = io.StringIO()
    table = chosen(drawn(2), SizeBudget(6.0))
    show_compression(table.as_json(), Console(file=stream, width=80))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert f"{table.rows[0].chosen} {table.rows[0].choice.decibel:.0f}" in text
    assert f"lm_head: {table.rows[-1].chosen}" in text
    assert f"{table.bits:.2f} bits a weight" in text
