"""`linear` with its weight laid out anew: the same numbers, one layout for every function, and pages given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import convert
from test_mil_pieces import halves

from validation.mil import MILModel, packing
from validation.mil.ops import packed
from validation.mil.ops.packed import BLOCK, PackedLinear
from validation.mil.registry import OPS

needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this build of torch has no FBGEMM"
)
WIDE = 1024  # inputs and outputs of a weight that is worth laying out


def layouts(model: MILModel) -> list[PackedLinear]:
    return [value for value in model.plan.binder.frame() if isinstance(value, PackedLinear)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 700), st.sampled_from([(1,), (1, 1), (2,), (1, 5), (3, 2)]), st.booleans())
def test_every_result_is_one_sum_rounded_once(blocks: int, inputs: int, rows: tuple[int, ...], biased: bool) -> None:
    weight, x = halves(blocks * BLOCK, inputs), halves(*rows, inputs, seed=1)
    bias = halves(blocks * BLOCK, seed=2) if biased else None
    got = packed.linear(x, PackedLinear(weight, bias))
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    rounding = exact.abs() * 2**-11 + 2**-25
    summing = F.linear(x.double().abs(), weight.double().abs()) * 2**-21  # float32 has 2**-24
    assert got.shape == exact.shape
    assert got.dtype == torch.float16
    assert ((got.double() - exact).abs() <= rounding + summing).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_edge_values(rows: int) -> None:
    weight = torch.zeros(BLOCK, 4, dtype=torch.float16)
    weight[0], weight[1, 0], weight[2, 1], weight[3, 0], weight[4] = 60000.0, 6e-8, 1.0, torch.inf, -60000.0
    x = torch.tensor([1.0, torch.nan, 1.0, 1.0]).half().expand(rows, 4)
    plain = PackedLinear(weight)
    assert packed.linear(x, plain).isnan().all()
    result = packed.linear(torch.ones(rows, 4).half(), plain)
    assert result[0, :6].tolist() == [torch.inf, torch.tensor(6e-8).half().item(), 1.0, torch.inf, -torch.inf, 0.0]


def test_another_width_is_an_error() -> None:
    with pytest.raises(ValueError, match="x has 3 values in its last axis, the weight takes 4"):
        packed.linear(halves(1, 3), PackedLinear(halves(BLOCK, 4)))


def test_a_kernel_that_sums_in_fp16_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def sums_in_half(table: Any, indices: Any, starts: Any, per_sample_weights: Any) -> list[torch.Tensor]:
        total = torch.zeros(1, BLOCK, dtype=torch.float16)
        for row, factor in zip(table, per_sample_weights, strict=True):
            total = total + row * factor
        return [total]

    assert packed.sums_in_float32.__wrapped__()
    monkeypatch.setattr(torch, "embedding_bag", sums_in_half)
    assert not packed.sums_in_float32.__wrapped__()


class Twice(torch.nn.Module):
    """A product that is laid out, a narrow one that is not, and one of two computed values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = torch.nn.Linear(WIDE, WIDE)
        self.narrow = torch.nn.Linear(WIDE, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.tanh(self.wide(x)))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    description = ct.utils.MultiFunctionDescriptor()
    for name, rows in (("prefill", 4), ("decode", 1)):
        inputs = [ct.TensorType("x", (1, rows, WIDE), dtype=np.float16)]
        single = folder / f"{name}.mlpackage"
        convert(
            Twice(), [torch.rand(1, rows, WIDE)], inputs=inputs, outputs=[ct.TensorType("y", dtype=np.float16)]
        ).save(str(single))
        description.add_function(str(single), "main", name)
    description.default_function_name = "decode"
    ct.utils.save_multifunction(description, str(folder / "twice.mlpackage"))
    return folder / "twice.mlpackage"


@needs_fbgemm
def test_a_large_weight_is_laid_out_once_for_all_functions(package: Path) -> None:
    decode = MILModel(package)
    prefill = decode.function("prefill")
    (one,), (other,) = layouts(decode), layouts(prefill)
    assert one is other
    assert (one.outputs, one.inputs) == (WIDE, WIDE)


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_a_program_gives_the_same_with_and_without(
    package: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 4 if function == "prefill" else 1, WIDE)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    (with_layout,) = MILModel(package, function).predict({"x": x}).values()
    monkeypatch.setattr("validation.mil.plan.half_of_memory", lambda: 0)
    plain = MILModel(package, function)
    (without,) = plain.predict({"x": x}).values()
    assert layouts(plain) == []
    np.testing.assert_allclose(with_layout, without, rtol=2**-9, atol=2**-12)
    assert np.abs(without).max() > 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16-accumulate"])
def test_other_precisions_take_the_weight_as_it_is(package: Path, precision: str) -> None:
    assert layouts(MILModel(package, precision=precision)) == []


@needs_fbgemm
def test_what_exceeds_half_the_memory_stays_mapped(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 2 * WIDE * (WIDE + 1)  # bytes of the weight and its bias
    monkeypatch.setattr("validation.mil.plan.half_of_memory", lambda: most)
    assert len(layouts(MILModel(package))) == 1
    monkeypatch.setattr("validation.mil.plan.half_of_memory", lambda: most - 1)
    assert layouts(MILModel(package)) == []
    assert packing.half_of_memory() > most


@needs_fbgemm
def test_the_file_s_memory_is_given_back_and_its_values_stay_readable(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MILModel(package)
    given_back = []
    forget = type(model.package).forget_blob
    monkeypatch.setattr(
        type(model.package), "forget_blob", lambda self, *blob: (given_back.append(blob), forget(self, *blob))
    )
    (layout,) = layouts(model)
    assert len(given_back) == 2, "weight and bias"
    exact = MILModel(model.package, precision="fp32").predict({"x": np.ones((1, 1, WIDE), np.float16)})["y"]
    assert np.isfinite(exact).all()
    assert np.abs(exact).max() > 0.1
    assert layout.table.float().std() > 0.01


def test_only_linear_has_a_layout() -> None:
    assert [name for name, op in OPS.items() if op.packing is not None] == ["linear"]
