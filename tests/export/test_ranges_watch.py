"""What is watched is what was computed: magnitudes, subnormals and names, op by op, also side by side."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from export.ranges import watch as module
from export.ranges.watch import BLOCK, Extremes, OpWatch, Tally, extremes, named_calls
from fastvlm.errors import TensorError

SMALL = 2.0**-14


def plain(x: Tensor) -> Extremes:
    wide = x.double()
    return Extremes(float(wide.abs().max()), int(((wide != 0) & (wide.abs() < SMALL)).sum()), x.numel())


def test_extremes_are_those_of_a_plain_computation() -> None:
    x = torch.randn(3 * BLOCK + 17) * torch.logspace(-8, 3, 3 * BLOCK + 17)
    for value in (x, -x, x.half(), x.double(), x[: BLOCK - 1].reshape(5, -1).T, x[::3], torch.zeros(7)):
        assert extremes(value) == plain(value.float())
    assert extremes(x).subnormals > 1000
    assert extremes(torch.empty(0, 3)) == Extremes()


@pytest.mark.parametrize(
    ("value", "subnormal"),
    [(0.0, 0), (-0.0, 0), (SMALL, 0), (-SMALL, 0), (math.nextafter(SMALL, 0), 0), (SMALL * (1 - 2**-20), 1),
     (-(2.0**-24), 1), (2.0**-149, 1), (1.0, 0)],
)  # fmt: skip
def test_subnormals_end_at_two_to_the_minus_14(value: float, subnormal: int) -> None:
    """(The largest double below 2⁻¹⁴ is 2⁻¹⁴ in float32.)"""
    assert extremes(torch.tensor([value, 3.0])) == Extremes(3.0, subnormal, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, BLOCK + 3])
def test_nan_and_infinity_are_never_overlooked(value: float, at: int) -> None:
    x = torch.full((BLOCK + 9,), 5.0)
    x[at] = value
    seen = extremes(x)
    assert math.isinf(seen.peak)
    with pytest.raises(TensorError, match=r"encoder\.a conv gives NaN or infinity in float32 on the input 'noise'"):
        Tally().add({"encoder.a conv": seen}, "noise")


def test_a_tally_keeps_order_the_first_worst_and_the_share_of_all() -> None:
    tally = Tally()
    tally.add({"b": Extremes(3.0, 1, 10), "a": Extremes(1.23456, 0, 4)}, "one")
    tally.add({"a": Extremes(7.0, 2, 4), "b": Extremes(3.0, 2, 90), "c": Extremes(0.0, 0, 0)}, "two")
    found = [(t.name, t.peak, t.subnormal, t.worst) for t in tally.tensors()]
    assert found == [("b", 3.0, 0.03, "one"), ("a", 7.0, 0.25, "two"), ("c", 0.0, 0.0, "two")]
    tally.add({"a": Extremes(1234.56, 0, 0)}, "three")
    assert tally.tensors()[1].peak == 1230.0


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scores = torch.matmul(x, x.transpose(1, 2))
        weights = torch.softmax(scores, -1)
        return torch.matmul(weights, x).reshape(1, -1).view(1, -1, 4)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.parts = nn.Sequential(Inner(), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x = self.parts(self.linear(x)) + x
        x = torch.cat((x, x), 1)
        largest, _ = x.max(1)
        return largest * 3


NAMES = ["mul", "linear linear", "parts.0 matmul", "parts.0 softmax", "parts.0 matmul.2", "parts.1 gelu", "add", "max",
         "mul.2"]  # fmt: skip


@torch.no_grad()
def test_ops_are_named_by_module_and_number_in_order() -> None:
    outer, x = Outer(), torch.randn(1, 3, 4)
    with named_calls(outer), OpWatch() as watch:
        out = outer(x)
    assert list(watch.found) == NAMES
    assert watch.found["mul"] == plain(x * 2)
    assert watch.found["linear linear"] == plain(outer.linear(x * 2))
    assert watch.found["mul.2"] == plain(out)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in outer.modules())


@torch.no_grad()
def test_a_second_call_counts_from_the_first_again_and_joins() -> None:
    gelu = nn.Sequential(nn.GELU())
    small, large = torch.full((2,), 1e-6), torch.full((3,), 40.0)
    with named_calls(gelu), OpWatch("encoder.") as watch:
        gelu(small)
        gelu(large)
    assert watch.found == {"encoder.0 gelu": Extremes(40.0, 2, 5)}


def test_threads_do_not_see_each_other() -> None:
    outer = Outer()

    @torch.no_grad()
    def run(scale: float) -> dict[str, Extremes]:
        with OpWatch() as watch:
            for _ in range(30):
                outer(torch.full((1, 3, 4), scale))
        return watch.found

    with named_calls(outer), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, [1.0, 2.0, 4.0, 8.0]))
    assert [seen["mul"].peak for seen in found] == [2.0, 4.0, 8.0, 16.0]
    assert all(list(seen) == NAMES for seen in found)


def test_an_op_that_fails_leaves_the_names_right() -> None:
    outer = Outer()
    with named_calls(outer), OpWatch() as watch, torch.no_grad():
        with pytest.raises(RuntimeError):
            outer(torch.ones(1, 3, 5))
        torch.ones(2) + 1
    assert list(watch.found) == ["mul", "add"]


def test_a_watch_that_overlooks_small_values_would_be_found(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "NORMAL_BITS", 1)
    assert extremes(torch.tensor([1e-6])) != plain(torch.tensor([1e-6]))
