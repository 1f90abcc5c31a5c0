"""Rung "blocks": a clean build is as good as fp16 allows at every block; a planted fault is found where it stands."""

from __future__ import annotations

import shutil
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch

from export import export
from export.api import export_model
from export.protection import PROTECTED
from fastvlm.build import read_build
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.samples import shipped_samples
from validation.blocks import bisect, compare_blocks
from validation.blocks.points import Distance, watched
from validation.mil.schema import model_message
from validation.pair import Pair

ROWS = 70  # positions: more than one chunk of 64, then four decoded
pytestmark = pytest.mark.usefixtures("one_thread")


def picture(pair: Pair) -> list[np.ndarray]:
    """The first shipped picture at the build's sizes."""
    image = open_image(shipped_samples()[0].picture)
    return [preprocess(image, side, pair.build.image_rule) for side in pair.build.image_sizes]


def rows_of(pair: Pair, count: int = ROWS) -> np.ndarray:
    """Embeddings (S, H) of ids that are all different."""
    ids = torch.arange(20, 20 + count)
    return np.asarray(pair.model.decoder.embed_tokens(ids).detach())


def compared(build: Any, model: Any) -> Any:
    pair = Pair(read_build(build), model)
    return pair, compare_blocks(pair, picture(pair), rows_of(pair))


def missed(comparison: Any) -> set[str]:
    return {row.limit.key for row in comparison.measurements if not row.passed}


@pytest.fixture
def model() -> Any:
    return load_checkpoint("tiny")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four packages: a layer each, the head with the last."""
    return export("tiny", tmp_path_factory.mktemp("chain") / "build", only="language", max_file_size=1_200_000)


def test_a_clean_build_is_as_good_as_fp16_allows_at_every_block(exported_tiny: Any, model: Any) -> None:
    pair, comparison = compared(exported_tiny, model)
    assert comparison.measurements
    assert not missed(comparison)
    assert bisect(pair, comparison) == []
    encoder, decoder = comparison.runs
    depths = model.config.vision.depths
    attention = sum(model.config.vision.attention_stages)
    assert len(encoder.rows) == 3 + sum(depths) + (len(depths) - 1) + attention + 2  # stem, down-samplings, RepCPE, end
    layers = model.config.text.layers
    assert [row.point.where for row in decoder.rows] == ["prefill"] * (layers - 1) + ["decode"] * (layers + 1)
    assert all(30 < row.own.snr_db < 100 for run in comparison.runs for row in run.rows)


@pytest.mark.parametrize("target", ["gpu", "chain"])
def test_either_target_and_a_chain_of_packages(target: str, chain: Any, model: Any, tmp_path: Any) -> None:
    build = chain if target == "chain" else export("tiny", tmp_path / "gpu", only="language", target="gpu")
    pair = Pair(read_build(build), model)
    comparison = compare_blocks(pair, [], rows_of(pair))
    assert not missed(comparison)
    assert len({row.point.name for row in comparison.runs[0].rows}) == model.config.text.layers + 1


def test_a_streaming_reference_gives_what_one_in_memory_gives(exported_tiny: Any, model: Any) -> None:
    whole, streamed = (compared(exported_tiny, each)[1] for each in (model, load_checkpoint("tiny", stream=True)))
    for one, other in zip(whole.runs[1].rows, streamed.runs[1].rows, strict=True):
        assert one.own == other.own


def swap_gate_and_up(model: Any) -> None:
    mlp = model.decoder.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def keys_one_position_on(model: Any) -> None:
    attention = model.decoder.layers[2].self_attn
    attention.k_proj.register_forward_hook(lambda _, __, keys: torch.cat((keys[:, :1], keys[:, :-1]), 1))


def other_layer_scale(model: Any) -> None:
    model.vision_encoder.network[4][1].layer_scale *= 1.1


def no_gate(model: Any) -> None:
    se = model.vision_encoder.conv_exp.se
    se.forward = MethodType(lambda self, x: x, se)


@pytest.mark.parametrize(
    ("fault", "block", "op"),
    [
        (swap_gate_and_up, "decoder.layers.1", "layers.1.mlp.gate_proj"),
        (keys_one_position_on, "decoder.layers.2", "layers.2.self_attn.k_proj"),
        (other_layer_scale, "vision_encoder.network.4.1", "network.4.1.convffn.fc2.conv"),
        (no_gate, "vision_encoder.conv_exp", None),
    ],
)
def test_a_fault_is_found_in_its_block_and_op(
    fault: Any, block: str, op: str | None, exported_tiny: Any, model: Any
) -> None:
    fault(model)
    pair, comparison = compared(exported_tiny, model)
    assert missed(comparison)
    first = bisect(pair, comparison)[0]
    assert (first.block, first.op) == (block, op)
    assert first.cause == "conversion"
    assert first.found != first.expected
    assert block in str(first)
    assert first.as_json()["index"] == list(first.index)


def test_a_value_beyond_fp16_is_a_matter_of_precision(tmp_path: Any, model: Any) -> None:
    mlp = model.decoder.layers[2].mlp
    mlp.up_proj.weight *= 2.0**13
    mlp.down_proj.weight *= 2.0**-13
    build = export_model(model, tmp_path / "build", only="language", protection=PROTECTED)
    pair = Pair(read_build(build), model)
    (finding,) = bisect(pair, compare_blocks(pair, [], rows_of(pair)))
    assert (finding.block, finding.op) == ("decoder.layers.2", "layers.2.mlp.down_proj"), "what it takes is beyond fp16"
    assert finding.snr_db == -np.inf
    assert finding.float32_db > 50
    assert finding.cause == "precision"
    assert "in float32: precision" in str(finding)


def test_a_block_that_the_program_lacks_is_counted(exported_tiny: Any, model: Any, tmp_path: Any) -> None:
    """The last sum of a layer becomes a product: there is no block's result to compare any more."""
    build = shutil.copytree(exported_tiny, tmp_path / "build")
    file = build / "LanguageModel.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = model_message()
    spec.ParseFromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["decode"].block_specializations.values()
    for op in reversed(block.operations):
        if op.type == "add":
            op.type = "maximum"
            break
    file.write_bytes(spec.SerializeToString())
    pair = Pair(read_build(build), model)
    comparison = compare_blocks(pair, [], rows_of(pair))
    assert "blocks.unmatched" in missed(comparison)
    assert any("down_proj" in name for name in comparison.runs[0].missing)


def test_a_block_that_the_reference_passes_by_is_counted(exported_tiny: Any, model: Any) -> None:
    """Its layer computes nothing of its own: no value of it could be compared."""
    skipped = model.decoder.layers[2]
    skipped.__class__ = type("Passed", (type(skipped),), {"__call__": lambda self, x, *_: x})
    _, comparison = compared(exported_tiny, model)
    assert "blocks.unmatched" in missed(comparison)
    assert "decoder.layers.2 in prefill: the reference never runs it" in comparison.runs[1].missing


def test_distances_are_those_of_all_calls_together() -> None:
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = expected.clone()
    found[1, 0] += 0.3
    once, twice = Distance(), Distance()
    once.add(expected, found)
    for row in (0, 1):
        twice.add(expected[row : row + 1], found[row : row + 1], row)
    assert once.snr_db == pytest.approx(twice.snr_db) == pytest.approx(10 * np.log10(30 / 0.09), rel=1e-6)
    assert (twice.index, twice.row, twice.expected) == ((0, 0), 1, 3.0)
    assert twice.found == pytest.approx(3.3)


def test_what_is_no_number_or_has_another_shape_is_as_bad_as_can_be() -> None:
    for found in (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.inf]), torch.ones(3)):
        distance = Distance()
        distance.add(torch.ones(2), found)
        assert distance.snr_db == -np.inf
    assert Distance().snr_db == -np.inf, "nothing was compared"


def test_watching_ends_with_its_block(model: Any) -> None:
    seen: list[str] = []
    with watched(model, ["projector"], lambda name, _: seen.append(name)):
        model.projector(torch.zeros(1, 1, model.projector[0].in_features))
    model.projector(torch.zeros(1, 1, model.projector[0].in_features))
    assert seen == ["projector"]
