"""Compressed weights under audit: a wrong code, scale, palette or scheme in a build, and in blocks made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_builds import Builds, red, tiny
from package_edits import edit_constant, manifest

from export.compression.codes import compress
from export.compression.schemes import SCHEMES
from export.parameters import GraphWeight
from fastvlm.errors import BuildError
from validation.audit.codes import Fit, fit_of
from validation.audit.schemes import schemes_of
from validation.limits import CODED

LANGUAGE = "LanguageModel.mlpackage"
CONSTANTS, EXCESS = "audit.differing_constants", "audit.code_excess"


@pytest.fixture
def found(builds: Builds, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Plants a fault into a copy of a build and gives the subjects of the rows that are red."""

    def found(name: str, edit: Callable[[Path], None]) -> dict[str, str]:
        rows = red(builds.edited(name, tmp_path, edit))
        print(rows)
        return rows

    return found


def stored(name: str, edit: Callable[[np.ndarray], None], parameter: str) -> Callable[[Path], None]:
    """Edits an argument of the op that makes a weight of the language model dense."""
    return lambda build: edit_constant(build / LANGUAGE, "decode", name, edit, parameter)


def off_by_one(raw: np.ndarray) -> None:
    raw[0] ^= 1


def double(scales: np.ndarray) -> None:
    scales += 1 << 10  # fp16's exponent


def clear(raw: np.ndarray) -> None:
    raw[:] = 0


def swap_entries(palettes: np.ndarray) -> None:
    flat = palettes.reshape(len(palettes), -1)
    flat[1, 5], flat[1, 6] = flat[1, 6].copy(), flat[1, 5].copy()


CODES = [("int8", "data"), ("int4", "data"), ("int4", "offset"), ("lut6", "indices"), ("lut4", "indices")]


@pytest.mark.parametrize(("scheme", "parameter"), CODES)
def test_a_code_or_an_offset_off_by_one(found: Callable[..., dict[str, str]], scheme: str, parameter: str) -> None:
    name = "layers_1_mlp_gate_proj_weight_to_fp16"
    rows = found(scheme, stored(name, off_by_one, parameter))
    assert rows.keys() == {EXCESS}
    assert rows[EXCESS].startswith(f"{LANGUAGE} prefill: {name} [0, ")


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_scale_twice_as_large(found: Callable[..., dict[str, str]], scheme: str) -> None:
    """All of a layer, its codes as they were."""
    name = "layers_3_self_attn_o_proj_weight_to_fp16"
    rows = found(scheme, stored(name, double, "scale"))
    assert EXCESS in rows
    assert all(name in subject for subject in rows.values())


@pytest.mark.parametrize("scheme", ["lut6", "lut4"])
def test_two_entries_of_a_palette_swapped(found: Callable[..., dict[str, str]], scheme: str) -> None:
    name = "layers_0_mlp_down_proj_weight_to_fp16"
    rows = found(scheme, stored(name, swap_entries, "lut"))
    assert rows.keys() == {EXCESS}
    assert f"{name} [" in rows[EXCESS]


def test_codes_that_are_all_alike(found: Callable[..., dict[str, str]]) -> None:
    rows = found("int8", stored("layers_0_self_attn_v_proj_weight_to_fp16", clear, "data"))
    assert rows.keys() == {EXCESS, "audit.int8_misfit", "audit.int8_snr_db"}


@pytest.mark.parametrize("power", [1, -1])
def test_a_scale_whose_codes_were_chosen_for_it(found: Callable[..., dict[str, str]], power: int) -> None:
    """No code is wrong for it, but half of them are idle, or weights are clipped."""
    name = "layers_3_mlp_up_proj_weight_to_fp16"
    weights = tiny().decoder.layers[3].mlp.up_proj.weight.detach().numpy()
    scales: list[np.ndarray] = []

    def rescale(bits: np.ndarray) -> None:
        bits[:] = (bits.astype(np.int32) + power * 1024).astype(np.uint16)
        scales.append(bits.view(np.float16).astype(np.float32).reshape(-1, 1))

    def choose(raw: np.ndarray) -> None:
        raw[:] = np.clip(np.rint(weights / scales[0]), -128, 127).astype(np.int8).reshape(-1).view(np.uint8)

    def edit(build: Path) -> None:
        stored(name, rescale, "scale")(build)
        stored(name, choose, "data")(build)

    rows = found("int8", edit)
    assert EXCESS not in rows
    assert name in rows["audit.int8_misfit"]


def recorded(layer: str, scheme: str | None) -> Callable[[Path], None]:
    """Edits the scheme that the manifest has for a layer."""

    def edit(build: Path) -> None:
        with manifest(build) as content:
            layers = content["compression"].setdefault("layers", {})
            layers.pop(layer, None)
            layers |= {} if scheme is None else {layer: scheme}

    return edit


@pytest.mark.parametrize(
    ("build", "layer", "scheme", "words"),
    [
        ("lut6", "layers.0.mlp.up_proj", "lut4", "layers_0_mlp_up_proj_weight_to_fp16 is no lut4: indices is uint6"),
        ("lut6", "layers.0.mlp.up_proj", "int8", "made by constexpr_lut_to_dense, expected constexpr_blockwise_"),
        ("int8", "lm_head", None, "is stored as constexpr_blockwise_shift_scale, the manifest says fp16"),
        ("gpu", "layers.1.mlp.up_proj", "int8", "is stored as fp16[512, 192], the manifest says int8"),
    ],
)
def test_another_scheme_than_the_manifest_records(
    found: Callable[..., dict[str, str]], build: str, layer: str, scheme: str | None, words: str
) -> None:
    rows = found(build, recorded(f"language.{layer}", scheme))
    assert rows.keys() == {CONSTANTS}
    assert words in rows[CONSTANTS]


@pytest.mark.parametrize("layers", [{"language.lm_head": "int2"}, ["int8"], "int8"])
def test_schemes_that_are_none(layers: Any) -> None:
    with pytest.raises(BuildError, match=r"compression\.layers in the manifest holds .*export the build again"):
        schemes_of({"layers": layers})


# Blocks made by hand: weights of many shapes, importance that only looks at a few inputs.
SHAPES = {
    "normal": lambda: torch.randn(64, 256) * 0.02,
    "uniform": lambda: torch.rand(64, 256) - 0.5,
    "heavy tails": lambda: torch.distributions.StudentT(3.0).sample((64, 256)) * 0.02,
    "one loud input": lambda: torch.randn(64, 256) * 0.02 * torch.where(torch.arange(256) == 7, 40.0, 1.0),
    "beyond the normal numbers": lambda: torch.randn(64, 256) * 1e-6,
    "up to fp16's end": lambda: torch.randn(64, 256) * 2e4,
    "rows of zeros": lambda: torch.randn(64, 256) * (torch.arange(64) % 2)[:, None],
}  # fmt: skip
LOUD = torch.exp(2 * torch.linspace(-3, 3, 256))


def fit_by_hand(scheme: str, rows: torch.Tensor, importance: torch.Tensor | None = None, factor: float = 1.0) -> Fit:
    """The fit of rows as an export compresses them; `factor`: of scales or palettes, whose codes are chosen anew."""
    rows, kind = rows.clamp(-65504, 65504), SCHEMES[scheme]
    made = compress(kind, rows, importance)
    tables, codes = {name: table.clone() for name, table in made.tables.items()}, made.codes
    if factor != 1:
        scaled = "lut" if kind.kind == "palette" else "scale"
        tables[scaled] = tables[scaled] * factor
        table = tables[scaled].flatten(1).float()
        if kind.kind == "palette":
            groups = rows.reshape(len(table), -1)
            nearest = [
                (values[:, None] - entries).abs().argmin(1) for values, entries in zip(groups, table, strict=True)
            ]
            codes = torch.stack(nearest).to(torch.uint8)
        else:
            offset = tables["offset"].flatten(1)[..., None] if kind.affine else 0
            values = rows.reshape(len(rows), table.shape[1], -1) / table[..., None]
            codes = (values.round() + offset).clamp(-(1 << kind.bits - 1), (1 << kind.bits - 1) - 1).to(torch.int8)
    flat = codes.reshape(-1).numpy()
    weight = GraphWeight("rows", tuple(rows.shape), lambda: iter([rows.reshape(-1)]))
    return fit_of(
        weight, kind, lambda first, count: flat[first : first + count], {k: v.numpy() for k, v in tables.items()}
    )


def missed(scheme: str, fit: Fit) -> list[str]:
    """The rows of the table that a fit misses."""
    values = {EXCESS: fit.excess, f"audit.{scheme}_misfit": fit.misfit, f"audit.{scheme}_snr_db": fit.snr_db}
    return [key for key, value in values.items() if not CODED[key].holds(value)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_whatever_weights_and_inputs_there_are_nothing_is_wrong(scheme: str, shape: str, weighted: bool) -> None:
    fit = fit_by_hand(scheme, SHAPES[shape](), LOUD if weighted and SCHEMES[scheme].weighted else None)
    print(f"excess {fit.excess:.1e}, misfit {fit.misfit:.4f}, {fit.snr_db:.1f} dB")
    assert missed(scheme, fit) == []


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_wrong_table_is_seen_whose_codes_were_chosen_for_it(scheme: str, weighted: bool, factor: float) -> None:
    importance = LOUD if weighted and SCHEMES[scheme].weighted else None
    fit = fit_by_hand(scheme, SHAPES["normal"](), importance, factor)
    assert f"audit.{scheme}_misfit" in missed(scheme, fit)
    assert fit.excess <= 1e-4


@pytest.mark.parametrize("scheme", ["lut6", "lut4"])
def test_a_palette_of_one_value_is_seen(scheme: str) -> None:
    """Every code is as near as any."""
    rows = SHAPES["normal"]()
    weight = GraphWeight("rows", tuple(rows.shape), lambda: iter([rows.reshape(-1)]))
    codes, palette = np.zeros(rows.numel(), np.uint8), np.zeros((2, 1, 1 << SCHEMES[scheme].bits, 1), np.float16)
    fit = fit_of(weight, SCHEMES[scheme], lambda first, count: codes[first : first + count], {"lut": palette})
    assert fit.excess == 0
    assert f"audit.{scheme}_misfit" in missed(scheme, fit)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_table_that_is_no_number_is_red(scheme: str, wrong: float) -> None:
    rows = SHAPES["normal"]()
    made = compress(SCHEMES[scheme], rows, None)
    tables = {name: table.numpy().copy() for name, table in made.tables.items()}
    tables["lut" if "lut" in tables else "scale"].reshape(-1)[3] = wrong
    flat = made.codes.reshape(-1).numpy()
    weight = GraphWeight("rows", tuple(rows.shape), lambda: iter([rows.reshape(-1)]))
    assert missed(scheme, fit_of(weight, SCHEMES[scheme], lambda first, count: flat[first : first + count], tables))
