"""The state of the packages beside the reference's KV cache: the same on every target, and red for what is stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from export.api import export_model
from export.key_shift import k_bias, key_shift, slow_channels
from export.protection import Protection
from fastvlm.build import Build, read_build
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.engine import TorchEngine
from validation import host
from validation.counterparts.state import state_counterparts
from validation.engine import PackageEngine
from validation.limits import LIMITS
from validation.pair import Pair
from validation.reference import Abandoned
from validation.state_parity import Filled, StateParity, compare_state, fill, rows_to_fill

CONTEXT, QUERY, POSITIONS = 96, 16, 74  # four whole chunks and one of ten rows
BIAS = 200.0  # of one slow pair of channels: 2 to 4 units are usual
VALUES = [0, 3, 0, 0]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def biased() -> Any:
    """tiny with a large constant part in the keys of layer 1."""
    model = load_checkpoint("tiny")
    slow = torch.nonzero(slow_channels(model.config.text, CONTEXT)).flatten()
    with torch.no_grad():
        model.decoder.layers[1].self_attn.k_proj.bias[slow[-1]] = BIAS
    return model


def rows_of(model: Any) -> np.ndarray:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 500, POSITIONS))
    return np.asarray(model.decoder.embed_tokens(ids).detach().numpy())


@pytest.fixture(scope="module")
def filled(model: Any) -> Filled:
    return fill(model.decoder, rows_of(model), Event())


def exported(model: Any, folder: Path, **options: Any) -> Build:
    built = export_model(model, folder, context=CONTEXT, query_length=QUERY, only="language", **options)
    return read_build(built)


@pytest.fixture(scope="module")
def plain(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return exported(model, tmp_path_factory.mktemp("plain") / "build")


def compared(pair: Pair, filled: Filled) -> StateParity:
    return compare_state(pair, PackageEngine(pair.build), filled)


def red(parity: StateParity) -> set[str]:
    """Which rows of the table miss their limit."""
    values = {f"{kind}_loss_db": max(losses.values()) for kind, losses in parity.loss.items()}
    values["chunking_loss_db"] = max(parity.chunking.values())
    return {metric for metric, value in values.items() if not LIMITS[f"state.{metric}"].holds(value)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "gpu"},
        {"target": "gpu", "max_file_size": 1_200_000},
        {"max_file_size": 800_000},
        {"protection": Protection(values=VALUES)},
        {"target": "gpu", "protection": Protection(values=VALUES, residual=2, scores=1, mlp=[1, 1, 1, 1])},
    ],
    ids=["ane", "gpu", "gpu chain", "ane chain", "exponents", "gpu exponents"],
)
def test_every_layout_holds_what_the_reference_holds(
    model: Any, filled: Filled, tmp_path: Path, options: dict[str, Any]
) -> None:
    parity = compared(Pair(exported(model, tmp_path / "build", **options), model), filled)
    assert red(parity) == set()
    assert list(parity.loss["keys"]) == list(parity.loss["values"]) == [f"layer {n}" for n in range(4)]
    assert len(parity.chunking) == 8


def test_a_constant_part_of_the_keys_is_left_out(biased: Any, tmp_path: Path) -> None:
    pair = Pair(exported(biased, tmp_path / "build"), biased)
    assert red(compared(pair, fill(biased.decoder, rows_of(biased), Event()))) == set()
    ((_, part),) = pair.parts()
    kept = list(state_counterparts(part))
    held = torch.zeros(biased.config.text.kv_heads, 3, biased.config.text.head_dim)
    shift = key_shift(k_bias(biased.decoder, 1), biased.config.text, CONTEXT)
    assert shift.abs().max() == BIAS
    assert torch.equal(kept[2].result(held), -shift[:, None].expand_as(held))
    assert (kept[2].kind, kept[2].layer, kept[2].row) == ("keys", 1, 2)


@pytest.mark.parametrize("layer", [1, 3])
def test_an_exponent_that_the_manifest_lacks_or_invents_is_red(
    model: Any, filled: Filled, plain: Build, layer: int
) -> None:
    told = Protection(values=[3 * (number == layer) for number in range(4)])
    manifest = {**plain.manifest, "protection": told.as_json()}
    parity = compared(Pair(replace(plain, manifest=manifest), model), filled)
    assert red(parity) == {"values_loss_db"}
    losses = parity.loss["values"]
    assert max(losses, key=lambda name: losses[name]) == f"layer {layer}"


def test_decode_that_does_not_see_its_own_row_is_red_in_chunking_alone(
    model: Any, filled: Filled, plain: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = host.causal_mask
    monkeypatch.setattr(
        host, "causal_mask", lambda position, rows, query, context: mask(position - (query == 1), rows, query, context)
    )
    assert red(compared(Pair(plain, model), filled)) == {"chunking_loss_db"}


def test_a_padded_chunk_that_looks_ahead_is_red(
    model: Any, filled: Filled, plain: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = host.causal_mask
    monkeypatch.setattr(
        host,
        "causal_mask",
        lambda position, rows, query, context: mask(position + (rows < query), query, query, context),
    )
    assert red(compared(Pair(plain, model), filled)) == {"keys_loss_db", "values_loss_db", "chunking_loss_db"}


def test_angles_that_start_at_one_in_each_chunk_are_red(
    model: Any, filled: Filled, plain: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of the chunks behind the first are off by one against those before; values of the first layer are right."""
    tables = host.rope_tables
    monkeypatch.setattr(host, "rope_tables", lambda position, *told: tables(position + (position > 0), *told))
    parity = compared(Pair(plain, model), filled)
    assert "keys_loss_db" in red(parity)
    assert parity.loss["values"]["layer 0"] < 1 < 20 < parity.loss["keys"]["layer 0"]


def test_rotary_tables_are_not_rounded_as_every_op_is(filled: Filled) -> None:
    """Else the yardstick of the keys would be off by the roundings of angles, and sleep."""
    error = (filled.rounded.keys - filled.exact.keys)[0, 0, :, -8:].abs().max()
    assert error < 2e-3 * filled.exact.keys[0, 0, :, -8:].abs().max()


def test_the_reference_is_filled_as_its_own_prefill_does(model: Any, filled: Filled) -> None:
    engine = TorchEngine(model, CONTEXT)
    engine.prefill(filled.rows)
    assert torch.equal(engine._cache.keys[..., :POSITIONS, :], filled.exact.keys)
    assert torch.equal(engine._cache.values[..., :POSITIONS, :], filled.exact.values)


def test_the_last_chunk_is_always_padded() -> None:
    rows = np.zeros((64, 2), np.float32)
    assert len(rows_to_fill(rows, 32)) == 63
    assert len(rows_to_fill(rows[:63], 32)) == 63


def test_what_nobody_waits_for_is_not_filled(model: Any) -> None:
    stopped = Event()
    stopped.set()
    with pytest.raises(Abandoned):
        fill(model.decoder, rows_of(model), stopped)
