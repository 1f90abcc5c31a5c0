"""`linear` with its weight laid out anew: the same numbers, one layout for every function, and pages given back."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_messages import one_op
from mil_programs import convert
from test_mil_pieces import halves

from fastvlm.errors import PackageError
from validation import within_memory
from validation.mil import MILModel
from validation.mil.blob import BlobFile
from validation.mil.dtypes import BY_NAME
from validation.mil.ops import packed
from validation.mil.ops.packed import BLOCK, PackedLinear
from validation.mil.registry import OPS
from validation.mil.values import TensorType

needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this build of torch has no FBGEMM"
)
WIDE = 1024  # inputs and outputs of a weight that is worth laying out


def half_type(*shape: int) -> TensorType:
    return TensorType(BY_NAME["fp16"], shape)


def layouts(model: MILModel) -> list[PackedLinear]:
    return [value for value in model.plan.binder.frame() if isinstance(value, PackedLinear)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 300, 3 * BLOCK]),
    st.integers(1, 700),
    st.sampled_from([(1,), (1, 1), (2,), (1, 5), (3, 2)]),
    st.booleans(),
)
def test_every_result_is_one_sum_rounded_once(outputs: int, inputs: int, rows: tuple[int, ...], biased: bool) -> None:
    weight, x = halves(outputs, inputs), halves(*rows, inputs, seed=1)
    bias = halves(outputs, seed=2) if biased else None
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
    assert within_memory.half_of_memory() > most


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


@needs_fbgemm
@pytest.mark.parametrize("bias", [7, 1])
def test_a_bias_of_another_length_is_named(bias: int) -> None:
    x, weight = np.ones((1, WIDE), np.float16), np.ones((WIDE, WIDE), np.float16)
    with pytest.raises(PackageError, match=r"op 'out0' \(linear\)"):
        one_op("linear", {"x": (x,), "weight": weight, "bias": np.ones((bias, 3), np.float16)}, "fp16", "fp16")
    row, square = half_type(1, WIDE), half_type(WIDE, WIDE)
    assert not packed.LINEAR.suits(row, square, half_type(bias))
    assert not packed.LINEAR.suits(row, square, half_type(1, WIDE))
    assert packed.LINEAR.suits(row, square, half_type(WIDE))
    assert packed.LINEAR.suits(row, half_type(WIDE + 1, WIDE)), "the last block may be part of one"
    assert not packed.LINEAR.suits(row, half_type(BLOCK - 1, 1 << 20))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells how much of a mapping is in memory")
def test_forgetting_frees_the_pages_of_that_blob_alone(tmp_path: Path) -> None:
    one = np.arange(8 << 20, dtype=np.uint8)
    places, raw = [], bytearray(struct.pack("<II", 2, 2).ljust(64, b"\0"))
    for values in (one, one[::-1]):
        places.append(len(raw))
        metadata = struct.pack("<IIQQQ", 0xDEADBEEF, 3, len(values), len(raw) + 64, 0)
        raw += metadata.ljust(64, b"\0") + values.tobytes()
    (tmp_path / "weight.bin").write_bytes(raw)
    file = BlobFile(tmp_path / "weight.bin")
    first, second = (file.read(place, BY_NAME["uint8"], (len(one),)) for place in places)
    assert first.sum() == second.sum()
    full = resident(tmp_path / "weight.bin")
    file.forget(places[0])
    left = resident(tmp_path / "weight.bin")
    assert full >= 16 << 20
    # Linux may map 2 MB at once, and frees such a piece whole.
    assert full - left >= 4 << 20
    assert left >= 4 << 20
    np.testing.assert_array_equal(first, one)


def resident(path: Path) -> int:
    """Bytes of the mapped file that this process holds in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


LIMIT = 3 << 30


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/jobs/one", "jobs/one/memory.max"),
        ("0::/jobs/one", "jobs/memory.max"),
        ("0::/", "memory.max"),
        ("4:memory:/jobs/one", "memory/jobs/one/memory.limit_in_bytes"),
        ("4:memory:/jobs/one", "memory/memory.limit_in_bytes"),
        ("4:cpu,memory:/jobs/one", "memory/jobs/memory.limit_in_bytes"),
    ],
)
def test_half_of_memory_heeds_a_limit_of_the_group(
    tmp_path: Path, line: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "sys"
    own.write_text(f"9:pids:/other\n{line}\n")
    (root / file).parent.mkdir(parents=True)
    monkeypatch.setattr(within_memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(within_memory, "_GROUPS", root)
    monkeypatch.setattr(within_memory, "_machine_memory", lambda: 8 << 30)
    assert within_memory.half_of_memory() == 4 << 30
    for text, half in ((str(LIMIT), LIMIT // 2), ("max", 4 << 30), (str(1 << 62), 4 << 30), ("?", 4 << 30)):
        (root / file).write_text(text + "\n")
        assert within_memory.half_of_memory() == half, text


def test_products_with_a_weight_alone_have_a_layout() -> None:
    assert {name for name, op in OPS.items() if op.packing is not None} == {"linear", "conv"}
