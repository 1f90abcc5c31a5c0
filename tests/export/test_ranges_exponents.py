"""Exponents are the smallest that bring a tensor below its bound; what none of them reaches is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from export.protection import LARGEST_STORED, PROTECTED, power
from export.ranges.decoder import CONTEXT
from export.ranges.exponents import LARGEST_SCORE, asked_of, problems_of, protection_of
from export.ranges.result import ALLOWED, DECODER, ENCODER, Ranges, TensorRange
from export.ranges.scan import scan
from fastvlm.errors import TensorError, UsageError

QUIET = {
    "embed_tokens rows": 1.0, "input": 2.0,
    **{f"layers.{layer}{name}": 3.0 for layer in range(3) for name in (
        ".input_layernorm norm", ".self_attn.q_proj linear", ".self_attn.k_proj linear", ".self_attn.v_proj linear",
        ".self_attn queries", ".self_attn keys", ".self_attn scores", ".self_attn softmax", ".self_attn attention",
        ".self_attn.o_proj linear", " add", ".post_attention_layernorm norm", ".mlp.gate_proj linear",
        ".mlp.up_proj linear", ".mlp silu", ".mlp mul", ".mlp.down_proj linear", " add.2",
    )},
    "norm norm": 4.0, "lm_head linear": 5.0,
}  # fmt: skip


SHIFTED = {f"layers.0.self_attn {name}": 3.0 for name in ("constant", "keys shifted", "scores shifted")}


TOWER = {"network.8.2.conv convolution": 9.0, "network.9 convolution": 9.0, "projector_2 convolution": 9.0}
SITES = {"network.8.2": ("network.8.2.conv convolution",), "network.9": ("network.9 convolution",)}


def ranges(**changes: float) -> Ranges:
    """Ranges of a quiet tower and three quiet layers but for `changes`, by name."""
    assert changes.keys() <= QUIET.keys() | SHIFTED.keys() | TOWER.keys()
    peaks = TOWER | QUIET | changes
    names = {name: f"{ENCODER if name in TOWER else DECODER}{name}" for name in peaks}
    tensors = (TensorRange(names[name], peak, 0.0, "noise") for name, peak in peaks.items())
    return Ranges("", (1024,), ("noise",), ("noise",), 1, None, tuple(tensors), SITES)


@pytest.mark.parametrize("limit", [LARGEST_STORED, LARGEST_SCORE])
@pytest.mark.parametrize("peak", [0.0, 1.0, 4095.9, 4096.0, 4097.0, 16384.0, 16385.0, 32768.0, 252866.0, 1e9, 3.3e38])
def test_a_power_is_the_smallest_that_fits(peak: float, limit: float) -> None:
    exponent = power(peak, limit)
    assert exponent >= 0
    assert math.ldexp(peak, -exponent) <= limit
    assert exponent == 0 or math.ldexp(peak, 1 - exponent) > limit


def test_quiet_ranges_ask_for_nothing() -> None:
    protection, problems = asked_of(ranges())
    assert protection.as_json() == {}
    assert protection.language_key == PROTECTED.language_key | {"mlp": [0, 0, 0], "values": [0, 0, 0]}
    assert problems == ()


@pytest.mark.parametrize(
    ("name", "peak", "asked"),
    [
        ("embed_tokens rows", 16385.0, {"residual": 1}),
        ("input", 32_768.0, {"residual": 1}),
        ("layers.1 add", 16385.0, {"residual": 1}),
        ("layers.2 add.2", 40_000.0, {"residual": 2}),
        ("layers.0.self_attn.o_proj linear", 33_000.0, {"residual": 2}),
        ("layers.0.mlp.down_proj linear", 33_000.0, {"residual": 2}),
        ("layers.2.self_attn scores", 4_100.0, {"scores": 1}),
        ("layers.2.self_attn scores", 60_000.0, {"scores": 4}),
        ("layers.2.self_attn queries", 60_000.0, {"scores": 2}),
        ("layers.2.self_attn.q_proj linear", 60_000.0, {"scores": 2}),
        ("layers.1.self_attn.v_proj linear", 16_385.0, {"values": [0, 1, 0]}),
        ("layers.1.self_attn attention", 16_385.0, {"values": [0, 1, 0]}),
        ("layers.2.mlp mul", 200_000.0, {"mlp": [0, 0, 4]}),
        ("layers.2.mlp.up_proj linear", 20_000.0, {"mlp": [0, 0, 1]}),
        ("network.9 convolution", 252_866.0, {"encoder": {"network.9": 4}}),
    ],
)
def test_each_tensor_asks_for_its_own_exponent(name: str, peak: float, asked: dict[str, Any]) -> None:
    protection, problems = asked_of(ranges(**{name: peak}))
    assert protection.as_json() == asked
    assert problems == ()
    if name not in TOWER:
        assert problems_of(ranges(**{name: peak * 32}), protection), "the bound is seen"


@pytest.mark.parametrize(
    "name",
    ["layers.1.input_layernorm norm", "layers.1.post_attention_layernorm norm", "layers.0.self_attn keys",
     "layers.0.self_attn.k_proj linear", "layers.2.mlp.gate_proj linear", "layers.2.mlp silu", "norm norm",
     "lm_head linear"],
)  # fmt: skip
def test_what_no_exponent_reaches_is_told(name: str) -> None:
    protection, problems = asked_of(ranges(**{name: ALLOWED + 1}))
    assert protection.as_json() == {}
    assert problems == (
        f"{DECODER}{name} reaches 32,769 on the input 'noise', and no power of two can be taken out of it: at most "
        "32,768 is allowed",
    )
    (problem,) = asked_of(ranges(**{name: 65_505.0}))[1]
    assert problem.endswith("fp16 makes it infinite")
    assert asked_of(ranges(**{name: ALLOWED}))[1] == ()


CONSTANT = {
    "layers.0.self_attn keys": 40_000.0, "layers.0.self_attn.k_proj linear": 40_000.0,
    "layers.0.self_attn scores": 33_000.0,
}  # fmt: skip


def test_keys_without_their_constant_part_count_where_the_graph_has_those() -> None:
    found = ranges(**CONSTANT, **SHIFTED)
    assert asked_of(found) == asked_of(found, CONTEXT // 2) == asked_of(ranges())
    assert protection_of(found, 2 * CONTEXT).scores == 4
    assert len(asked_of(found, 2 * CONTEXT)[1]) == 2
    assert protection_of(ranges(**CONSTANT)).scores == 4
    large = ranges(**CONSTANT, **SHIFTED | {"layers.0.self_attn scores shifted": 5_000.0})
    assert protection_of(large).scores == 1
    assert asked_of(ranges(**SHIFTED | {"layers.0.self_attn keys shifted": 33_000.0}))[1]
    others = ranges(**SHIFTED, **{"layers.1.self_attn scores": 5_000.0})
    assert protection_of(others).scores == 1, "a layer whose keys are whole counts as it is"


@pytest.mark.parametrize(
    ("name", "peak", "says"),
    [
        ("layers.1 add", 2.2e6, "the residual stream (2^8)"),
        ("layers.1.mlp mul", 1e8, "layer 1's MLP (2^13)"),
        ("layers.2.self_attn.v_proj linear", 1e8, "layer 2's values (2^13)"),
        ("layers.2.self_attn scores", 2.2e6, "scores (2^10)"),
        ("network.9 convolution", 2.2e6, "network.9 (2.2e+06)"),
    ],
)
def test_what_no_graph_carries_is_an_error(name: str, peak: float, says: str) -> None:
    with pytest.raises(TensorError, match=r"fp16 (carries|cannot carry)") as error:
        asked_of(ranges(**{name: peak}))
    assert says in str(error.value)
    assert asked_of(ranges(**{name: peak / 2.2}))[0].as_json() if peak < 1e7 else True


@pytest.mark.parametrize("name", ["embed_tokens rows", "input"])
def test_inputs_come_unscaled(name: str) -> None:
    protection, (problem,) = asked_of(ranges(**{name: 40_000.0}))
    assert protection.as_json() == {"residual": 2}
    assert problem.startswith(f"{DECODER}{name} reaches 40,000")


def test_image_tokens_leave_unscaled() -> None:
    protection, (problem,) = asked_of(ranges(**{"projector_2 convolution": 40_000.0}))
    assert protection.as_json() == {}
    assert problem.startswith(f"{ENCODER}projector_2 convolution reaches 40,000")


def test_a_site_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"no range was measured of network\.3 gelu"):
        asked_of(replace(ranges(), sites={"network.3": ("network.3 gelu",)}))


def test_the_mask_wins_at_the_largest_score() -> None:
    """A masked score is below every visible one, and fp16 holds both."""
    for peak in (4096.0, 4100.0, 65_000.0, 1e6):
        stored = peak * 2.0 ** -protection_of(ranges(**{"layers.0.self_attn scores": peak})).scores
        assert stored - 1e4 < -stored
        assert -stored - 1e4 > -65_504


def test_a_real_scan_asks_for_nothing() -> None:
    """And JSON gives back the same protection."""
    found = scan("tiny", image_sizes=(64,))
    assert asked_of(found)[0].as_json() == {}
    spiked = replace(found, tensors=tuple(replace(t, peak=t.peak * 1000) for t in found.tensors))
    protection = protection_of(spiked)
    assert protection.residual == 2
    assert json.loads(json.dumps(protection.as_json())) == protection.as_json()
    assert len(protection.mlp) == len(protection.values) == 4
