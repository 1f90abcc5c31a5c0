"""What the tests take for the same conversion is the same one: nothing that coremltools is given is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import key, remembering
from made_once import made_once
from torch import nn

from export.contract import FunctionSpec, TensorSpec
from export.convert import convert, converted, trace
from fastvlm.mlpackage import WEIGHT_FILE

SPEC = FunctionSpec("main", (TensorSpec("x", (1, 40), "float16", "in"),), (TensorSpec("y", (1, 40), "float16", "out"),))


class Graph(nn.Module):
    """A linear layer, and a constant that is no parameter."""

    def __init__(self, weight: float = 1.0, constant: float = 2.0, slope: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(40, 40)
        self.linear.weight.data.fill_(1.0)[3, 5] = weight
        self.linear.bias.data.fill_(0.0)
        self.constant, self.slope = torch.full((40,), 2.0), slope
        self.constant[7] = constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.linear(x) * self.constant, self.slope)


def traced(**changes: float) -> Any:
    return trace(Graph(**changes), ((1, 40),))


def test_a_graph_that_is_traced_again_is_the_same() -> None:
    assert key(traced(), SPEC) == key(traced(), SPEC)


@pytest.mark.parametrize("name", ["weight", "constant", "slope"])
def test_one_number_makes_another(name: str) -> None:
    assert key(traced(**{name: 0.5}), SPEC) != key(traced(), SPEC)


def test_so_do_the_contract_and_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = traced()
    before = key(graph, SPEC)
    assert key(graph, replace(SPEC, system="iOS16")) != before
    assert key(graph, replace(SPEC, outputs=(replace(SPEC.outputs[0], dtype="float32"),))) != before
    monkeypatch.setattr("export.convert.PASSES", ("dead_code_elimination",))
    assert key(graph, SPEC) != before


def test_a_kept_conversion_is_what_coremltools_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each who asks has files of its own."""
    made: list[Any] = []

    def counted(graph: Any, spec: Any) -> Any:
        made.append(convert(graph, spec))
        weights.append((made[-1][1] / WEIGHT_FILE).read_bytes())
        return made[-1]

    weights: list[bytes] = []
    monkeypatch.setattr("export.convert.convert", remembering(counted, tmp_path / "kept"))
    for _ in range(2):
        with converted(traced(), SPEC) as found:
            assert found.proto == made[0][0]
            assert found.weights.read_bytes() == weights[0]
        assert not found.weights.exists()
    with converted(traced(weight=0.5), SPEC) as found:
        assert found.weights.read_bytes() != weights[0]
    assert len(made) == 2


def test_the_faster_of_two_stays(tmp_path: Path) -> None:
    def make(place: Path, slower: bool = True) -> None:
        if slower:
            made_once(tmp_path / "place", lambda place: make(place, slower=False))
        place.mkdir()
        (place / "who").write_text("slower" if slower else "faster")

    place = made_once(tmp_path / "place", make)
    assert (place / "who").read_text() == "faster"
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(place: Path) -> None:
        place.mkdir()
        raise ValueError

    with pytest.raises(ValueError):
        made_once(tmp_path / "place", make)
    assert list(tmp_path.iterdir()) == []
