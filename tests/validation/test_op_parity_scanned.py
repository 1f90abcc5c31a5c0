"""Rung "ops" on seeded weights: pieces are as near with every declared factor as without; one astray is found.

Exponents on every site of the encoder and on all that the decoder has, keys with large constant parts, either target.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from package_surgery import Surgery

from export.api import export_model
from export.encoder import EncoderGraph
from export.encoder_sites import LARGEST_EXPONENT
from export.folding import PowerConv
from export.protection import UNPROTECTED, Protection
from fastvlm.build import read_build
from fastvlm.manifest import read_manifest, write_manifest
from validation.op_parity import compare_ops, op_findings
from validation.pair import Pair

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED: dict[str, Any] = {"context": 128, "query_length": 16}
LANGUAGE = {"residual": 3, "scores": 4, "mlp": (2, 5), "values": (1, 3)}


@pytest.fixture(scope="module")
def model() -> Any:
    """The export tests' seeded model; its keys have biases of 40 and −212 in pairs that hardly rotate."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
    from small_export import small_model

    made = small_model()
    text = made.config.text
    for layer in made.decoder.layers:
        heads = layer.self_attn.k_proj.bias.data.view(text.kv_heads, text.head_dim)
        heads[:, 15::16], heads[:, 14::16] = 40.3, -211.7
    return made


@pytest.fixture(scope="module")
def protection(model: Any) -> Protection:
    """Exponents from 0 to the largest, another at every site, so that powers stand before and behind convolutions."""
    sites = {site: 5 * at % (LARGEST_EXPONENT + 1) for at, site in enumerate(EncoderGraph(model).sites)}
    found = Protection(encoder={site: power for site, power in sites.items() if power}, **LANGUAGE)
    powers = [conv for conv in EncoderGraph(model, found).modules() if isinstance(conv, PowerConv)]
    assert any(conv.before != 1 for conv in powers)
    return found


def built(model: Any, folder: Path, **asked: Any) -> Pair:
    return Pair(read_build(export_model(model, folder, **ASKED, **asked)), model)


@pytest.mark.parametrize("target", ["ane", pytest.param("gpu", marks=pytest.mark.long)])
def test_every_factor_is_undone(target: str, model: Any, protection: Protection, tmp_path: Path) -> None:
    """For "gpu" this found a conversion that lost the sign of every second half: keys were wrong, and ran."""
    pair = built(model, tmp_path / "build", target=target, protection=protection)
    assert pair.sizes.shifts_keys
    rows = compare_ops(pair)
    assert all(row.passed for row in rows), [str(finding) for finding in op_findings(pair)]


@pytest.mark.parametrize("target", ["ane", pytest.param("gpu", marks=pytest.mark.long)])
def test_without_safe_forms(target: str, model: Any, tmp_path: Path) -> None:
    unsafe = replace(UNPROTECTED, residual=6)
    pair = built(model, tmp_path / "build", target=target, protection=unsafe)
    assert not pair.sizes.shifts_keys
    assert op_findings(pair) == []


@pytest.mark.long
def test_a_chain_hands_on_what_the_next_package_takes(model: Any, protection: Protection, tmp_path: Path) -> None:
    """Packages of one layer and of the head alone; the last layer's prefill keeps an input that it does not use."""
    pair = built(model, tmp_path / "build", protection=protection, only="language", max_file_size=100_000)
    assert [len(range(chunk.first, chunk.last)) for chunk in pair.chunks] == [1, 1, 0]
    assert op_findings(pair) == []


def test_an_exponent_that_the_manifest_does_not_tell_is_found(
    model: Any, protection: Protection, tmp_path: Path
) -> None:
    pair = built(model, tmp_path / "build", protection=protection, only="language")
    manifest = read_manifest(pair.build.folder)
    manifest["protection"]["mlp"] = [2, 4]
    write_manifest(pair.build.folder / "manifest.json", manifest)
    pieces = {finding.piece for finding in op_findings(Pair(read_build(pair.build.folder), model))}
    # prefill holds no MLP of the last layer
    assert pieces == {"layers.1.mlp.up_proj", "layers.1.mlp.down_proj"}


def test_signs_of_the_sine_are_found_where_keys_are_shifted(model: Any, protection: Protection, tmp_path: Path) -> None:
    pair = built(model, tmp_path / "build", protection=protection, only="language")
    surgery = Surgery(pair.build.language[0].package, "decode")
    with surgery.numbers(next(value.name for value in surgery.facts.ops[2].values if value.fixed)) as signs:
        assert sorted(set(signs.ravel().tolist())) == [-1, 1]
        signs[:] = -1
    attention = {finding.piece for finding in op_findings(pair)}
    assert attention == {"layers.0.self_attn attention", "layers.1.self_attn attention"}
