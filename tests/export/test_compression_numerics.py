"""Weights through `compress` and `dense`: what is stored is what a runtime reads, and no plainer way loses less."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from compression_plain import plain, weighted_error
from export_limits import LIMITS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from export.compression.codes import compress, dense
from export.compression.schemes import SCHEMES, Scheme
from export.compression.stored import FP16_MAX, Codes
from validation.mil.ops.constexpr import constexpr_blockwise_shift_scale, constexpr_lut_to_dense

ALL = tuple(SCHEMES.values())
PALETTES = tuple(scheme for scheme in ALL if scheme.kind == "palette")
SCALED = tuple(scheme for scheme in ALL if scheme.kind != "palette")


def rows(shape: tuple[int, ...], seed: int = 0, tail: float = 0.0) -> Tensor:
    """Gaussian weights, or with `tail` degrees of freedom Student's."""
    generator = np.random.default_rng(seed)
    values = generator.standard_t(tail, shape) if tail else generator.standard_normal(shape)
    return torch.from_numpy((0.02 * values).astype(np.float32))


def runtime(scheme: Scheme, codes: Codes) -> np.ndarray:
    """The stored values made dense by this project's runtime."""
    tables = {name: table.numpy() for name, table in codes.tables.items()}
    if scheme.op == "constexpr_lut_to_dense":
        return constexpr_lut_to_dense(codes.codes.numpy(), tables["lut"]).astype(np.float32)
    return constexpr_blockwise_shift_scale(codes.codes.numpy(), **tables)


scheme_of_any_kind = st.sampled_from(ALL)
shapes = st.tuples(st.sampled_from([32, 64]), st.sampled_from([32, 96])).flatmap(
    lambda shape: st.sampled_from([shape, (*shape, 1, 1)])
)


@given(scheme_of_any_kind, shapes, st.integers(0, 9), st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e3, 2e4]), st.booleans())
def test_dense_is_what_the_runtime_computes(
    scheme: Scheme, shape: tuple[int, ...], seed: int, size: float, weighted: bool
) -> None:
    weights = (rows(shape, seed) * 50 * size).clamp(-FP16_MAX, FP16_MAX)
    importance = rows((shape[1],), seed).abs() if weighted else None
    codes = compress(scheme, weights, importance)
    assert {name: tuple(table.shape) for name, table in codes.tables.items()} == scheme.table_shapes(shape)
    assert codes.codes.shape == shape
    signed = scheme.kind != "palette"
    low, high = (-(1 << scheme.bits - 1), (1 << scheme.bits - 1) - 1) if signed else (0, (1 << scheme.bits) - 1)
    for stored in (codes.codes, codes.tables.get("offset", codes.codes)):
        assert stored.dtype == (torch.int8 if signed else torch.uint8)
        assert low <= int(stored.min())
        assert int(stored.max()) <= high
    floats = [table for name, table in codes.tables.items() if name != "offset"]
    assert all(table.dtype == torch.float16 and bool(torch.isfinite(table).all()) for table in floats)
    found = dense(scheme, codes)
    assert np.array_equal(found.numpy(), runtime(scheme, codes))
    assert bool(torch.isfinite(found.half()).all())


@given(scheme_of_any_kind, st.integers(0, 9), st.sampled_from([0.0, 2.5]), st.booleans())
def test_no_plain_rounding_loses_less(scheme: Scheme, seed: int, tail: float, weighted: bool) -> None:
    weights = rows((64, 96), seed, tail)
    importance = rows((96,), seed + 100).square() if weighted else None
    error = weighted_error(weights, dense(scheme, compress(scheme, weights, importance)), importance)
    for other in plain(scheme, weights):
        assert error <= weighted_error(weights, other, importance) * (1 + 1e-4)


@pytest.mark.parametrize("scheme", [*PALETTES, SCHEMES["int4"]], ids=lambda scheme: scheme.name)
def test_importance_moves_the_error_to_where_it_does_not_matter(scheme: Scheme) -> None:
    weights = rows((64, 256))
    deviation = torch.logspace(-2, 1, 256)[torch.randperm(256)]
    inputs = torch.randn(2000, 256) * deviation
    blind, seeing = (dense(scheme, compress(scheme, weights, h)) for h in (None, inputs.square().mean(0)))
    lost = [float((inputs @ (weights - found).T).square().sum()) for found in (blind, seeing)]
    gain = 10 * np.log10(lost[0] / lost[1])
    print(f"{scheme.name}: output error {gain:.3f} dB less")
    assert LIMITS["importance"].holds(gain)


def test_importance_enters_the_scale_of_a_channel() -> None:
    weights = rows((32, 256))
    weights[:, 0] = 0.12  # what int8's step comes from, on an input that is always zero
    importance = torch.ones(256)
    importance[0] = 0
    blind, seeing = (dense(SCHEMES["int8"], compress(SCHEMES["int8"], weights, h)) for h in (None, importance))
    assert weighted_error(weights, seeing, importance) < weighted_error(weights, blind, importance)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_zeros_stay_zeros(scheme: Scheme) -> None:
    codes = compress(scheme, torch.zeros(32, 64))
    assert not dense(scheme, codes).any()
    assert "scale" not in codes.tables or bool((codes.tables["scale"] > 0).all())


@pytest.mark.parametrize("scheme", SCALED, ids=lambda scheme: scheme.name)
def test_a_row_or_block_of_zeros_among_others_stays_zero(scheme: Scheme) -> None:
    weights = rows((32, 64))
    weights[3] = 0
    weights[:, 32:] *= torch.arange(32)[:, None] % 2
    found = dense(scheme, compress(scheme, weights))
    assert not found[weights == 0].any()
    assert found[0, :32].any()


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_window_ends_at_zero_where_all_weights_are_of_one_sign(sign: int) -> None:
    weights = sign * (rows((32, 64)) + 0.5)
    codes = compress(SCHEMES["int4"], weights)
    assert -8 <= int(codes.tables["offset"].min())
    assert int(codes.tables["offset"].max()) <= 7
    assert weighted_error(weights, dense(SCHEMES["int4"], codes)) < 0.01 * weighted_error(weights, 0 * weights)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("scheme", SCALED, ids=lambda scheme: scheme.name)
def test_single_zeros_are_exact(scheme: Scheme, shift: float) -> None:
    """Also in a block whose other weights are all of one sign, where its window ends at zero."""
    weights = rows((32, 64)) + shift
    weights[:, ::7] = 0
    weights[1, 3] = 8 * shift
    codes = compress(scheme, weights)
    assert not dense(scheme, codes)[:, ::7].any()
    assert all(
        -8 <= int(table.min()) and int(table.max()) <= 7 for name, table in codes.tables.items() if name == "offset"
    )


@pytest.mark.parametrize("size", [1e-12, 3e-8, 1e-7, 1e-6])
@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_tiny_weights_are_as_near_as_fp16_has_numbers(scheme: Scheme, size: float) -> None:
    weights = size * torch.linspace(-1, 1, 64).repeat(32, 1)
    codes = compress(scheme, weights)
    assert "scale" not in codes.tables or bool((codes.tables["scale"] > 0).all())
    assert float((dense(scheme, codes) - weights).abs().max()) <= max(size / 7, 2.0**-24)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_huge_weights_never_become_infinite(scheme: Scheme, seed: int) -> None:
    weights = (rows((32, 64), seed) * 1e7).clamp(-FP16_MAX, FP16_MAX)
    found = dense(scheme, compress(scheme, weights)).half()
    assert bool(torch.isfinite(found).all())
    assert float((found.float() - weights).abs().max()) <= FP16_MAX / (6 if scheme.bits == 4 else 40)


@pytest.mark.parametrize("scheme", [SCHEMES["int8"], *PALETTES], ids=lambda scheme: scheme.name)
def test_kernels_are_rows_like_others(scheme: Scheme) -> None:
    weights = rows((64, 6, 3, 3))
    importance = torch.rand(6)
    flat = dense(scheme, compress(scheme, weights.flatten(1), importance.repeat_interleave(9)))
    kernel = compress(scheme, weights, importance)
    assert all(table.shape[1:4] == (1, 1, 1) for table in kernel.tables.values())
    assert torch.equal(dense(scheme, kernel).flatten(1), flat)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_blocks_of_rows_are_compressed_alone(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight in pieces, of the caller's or of the module's own, gives the same bytes."""
    weights = rows((128, 64))
    whole = compress(scheme, weights)
    monkeypatch.setattr("export.compression.linear.VALUES", 64 * 40)
    monkeypatch.setattr("export.compression.palette.VALUES", 64 * 40)
    smaller = compress(scheme, weights)
    halves = [compress(scheme, part) for part in weights.split(64)]
    joined = Codes(
        torch.cat([half.codes for half in halves]),
        {name: torch.cat([half.tables[name] for half in halves]) for name in whole.tables},
    )
    for other in (smaller, joined):
        assert torch.equal(other.codes, whole.codes)
        assert all(torch.equal(other.tables[name], table) for name, table in whole.tables.items())


def best_palette(values: np.ndarray, weights: np.ndarray, entries: int) -> float:
    """The least weighted error of any palette: every way to cut the sorted values."""
    order = np.argsort(values)
    values, weights = values[order].astype(np.float64), weights[order].astype(np.float64)

    def cost(start: int, end: int) -> float:
        part, weight = values[start:end], weights[start:end]
        return float((weight * (part - np.average(part, weights=weight)) ** 2).sum())

    costs = {(a, b): cost(a, b) for a, b in itertools.combinations(range(len(values) + 1), 2)}
    best = [0.0] + [costs[0, end] for end in range(1, len(values) + 1)]
    for _ in range(entries - 1):
        best = [0.0] + [
            min(best[cut] + costs.get((cut, end), 0.0) for cut in range(end + 1)) for end in range(1, len(best))
        ]
    return best[-1]


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.5, 3.0]), st.booleans())
def test_palettes_are_the_best_there_are(seed: int, tail: float, weighted: bool) -> None:
    """Against every possible palette of 60 values, up to the rounding of its entries."""
    generator = np.random.default_rng(seed)
    values = rows((32, 2), seed, tail)
    weights = generator.random(2) + 0.1 if weighted else np.ones(2)
    importance = torch.from_numpy(weights.astype(np.float32))
    found = dense(SCHEMES["lut4"], compress(SCHEMES["lut4"], values, importance))
    least = best_palette(values.flatten().numpy(), np.tile(weights, 32), 16)
    error = weighted_error(values, found, importance)
    rounding = 64 * (values.abs().max().item() * 2.0**-11) ** 2  # of the palette's entries
    assert LIMITS["palette_excess"].holds((error - rounding) / least - 1)


@pytest.mark.parametrize("tail", [0.0, 4.0, 2.5, 1.5])
@pytest.mark.parametrize("scheme", PALETTES, ids=lambda scheme: scheme.name)
def test_palettes_lose_nothing_against_the_exact_program(scheme: Scheme, tail: float) -> None:
    """coremltools' k-means finds the optimum of fp16 values; ours may not be noticeably behind."""
    from export.quiet import import_coremltools

    import_coremltools()
    from coremltools.models.neural_network.quantization_utils import _get_kmeans_lookup_table_and_weight

    weights = rows((64, 320), tail=tail)
    found = dense(scheme, compress(scheme, weights))
    exact = []
    for group in weights.half().numpy().reshape(2, -1):
        lut, codes = _get_kmeans_lookup_table_and_weight(scheme.bits, group)
        exact.append(lut.astype(np.float16).astype(np.float32)[codes])
    loss = 10 * np.log10(
        weighted_error(weights, found) / weighted_error(weights, torch.from_numpy(np.stack(exact)).reshape(64, 320))
    )
    print(f"{scheme.name}, tail {tail}: {loss:.5f} dB behind")
    assert LIMITS["palette_loss"].holds(loss)


@pytest.mark.parametrize("scheme", PALETTES, ids=lambda scheme: scheme.name)
def test_few_values_are_exact(scheme: Scheme) -> None:
    weights = torch.tensor([-2.0, 0.0, 0.25, 7.0])[torch.randint(4, (32, 50))]
    codes = compress(scheme, weights)
    assert torch.equal(dense(scheme, codes), weights)


@pytest.mark.parametrize("scheme", [*PALETTES, SCHEMES["int4"]], ids=lambda scheme: scheme.name)
def test_inputs_that_calibration_never_met_are_not_given_up(scheme: Scheme) -> None:
    weights = rows((32, 128))
    importance = torch.ones(128)
    importance[32:64] = 0
    found = dense(scheme, compress(scheme, weights, importance))[:, 32:64]
    excess = weighted_error(weights[:, 32:64], found) / weighted_error(
        weights[:, 32:64], dense(scheme, compress(scheme, weights))[:, 32:64]
    )
    assert excess < 1.2
    all_zero = compress(scheme, weights, torch.zeros(128))
    assert torch.equal(all_zero.codes, compress(scheme, weights).codes)


def test_an_input_of_no_importance_does_not_break_a_palette() -> None:
    weights = rows((32, 40))
    importance = torch.zeros(40)
    importance[3] = 1
    found = dense(SCHEMES["lut4"], compress(SCHEMES["lut4"], weights, importance))
    assert bool(torch.isfinite(found).all())
    assert float((found - weights)[:, 3].abs().max()) < 0.01


def test_the_same_weights_give_the_same_bytes() -> None:
    weights = rows((32, 64)).repeat(1, 3)  # equal values, which a sort may order as it likes
    importance = torch.rand(192)
    first, second = (compress(SCHEMES["lut4"], weights, importance) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.tables["lut"], second.tables["lut"])


@pytest.mark.parametrize(
    ("name", "weights", "importance", "words"),
    [
        ("lut4", torch.zeros(48, 4), None, "48 rows, not a multiple of 32"),
        ("int4", torch.zeros(4, 40), None, "40 inputs, not a multiple of 32"),
        ("int4", torch.zeros(4, 32, 3, 3), None, "kernel of 3×3"),
        ("int8", torch.zeros(4), None, "1 axis"),
        ("int8", torch.full((4, 4), torch.nan), None, "NaN or infinity"),
        ("lut6", torch.full((32, 4), -torch.inf), None, "NaN or infinity"),
        ("int8", torch.zeros(4, 4), torch.ones(3), "4 finite values"),
        ("int8", torch.zeros(4, 4), -torch.ones(4), "4 finite values"),
        ("int8", torch.zeros(4, 4), torch.full((4,), torch.inf), "4 finite values"),
    ],
)
def test_what_cannot_be_compressed_is_refused(name: str, weights: Tensor, importance: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compress(SCHEMES[name], weights, importance)


@pytest.mark.parametrize("tail", [0.0, 4.0])
@pytest.mark.parametrize("scheme", SCALED, ids=lambda scheme: scheme.name)
def test_scales_lose_less_than_coremltools_same_form(scheme: Scheme, tail: float) -> None:
    """Symmetric against its linear_symmetric, affine against its linear."""
    from export.quiet import import_coremltools

    import_coremltools()
    from coremltools.optimize import _utils

    weights = rows((64, 320), tail=tail)
    sizes = [1, 0 if scheme.kind == "channel" else scheme.group]
    mode = "LINEAR" if scheme.affine else "LINEAR_SYMMETRIC"
    theirs = _utils.compute_qparams(weights.half().numpy(), scheme.bits, True, mode, None, sizes)
    other = torch.from_numpy(_utils.dequantize_by_scale_and_zp(*theirs).astype(np.float32))
    gain = 10 * np.log10(
        weighted_error(weights, other) / weighted_error(weights, dense(scheme, compress(scheme, weights)))
    )
    print(f"{scheme.name}, tail {tail}: {gain:.4f} dB better")
    assert LIMITS[f"{scheme.name}_gain"].holds(gain)


@pytest.mark.parametrize("name", SCHEMES)
def test_where_a_block_of_rows_ends_changes_no_bit(name: str) -> None:
    """torch sums in another order when there are other columns beside; a build's bytes must not show it."""
    weights, importance = torch.randn(288, 4864), torch.rand(4864)
    whole = compress(SCHEMES[name], weights, importance)
    parts = [compress(SCHEMES[name], part, importance) for part in weights.split(96)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    for table, values in whole.tables.items():
        assert torch.equal(values, torch.cat([part.tables[table] for part in parts]))


@pytest.mark.parametrize("peak", [7.6e-6, 9e-6, 1.2e-5])
def test_a_scale_between_two_subnormals_does_not_clip(peak: float) -> None:
    """As rows of tokens that were never trained have it: where the nearest is too small, the next is tried."""
    rows = torch.linspace(-1, 1, 896).repeat(4, 1) * peak
    error = (dense(SCHEMES["int8"], compress(SCHEMES["int8"], rows)) - rows).abs().max()
    assert error <= 2.0**-24  # half a step of a scale of 2⁻²³
