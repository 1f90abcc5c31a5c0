"""`benchmarks/paper.py`: what it counts by formula, held to transformers' models and this project's on the meta device.

Official widths and few layers: a model that holds shapes and no numbers costs little. Of times it is tested how they
are taken.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_ops

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # last: there is an export.py in it

torchvision_ops.usable()  # before transformers, which imports torchvision where it finds it
transformers = pytest.importorskip("transformers", reason="the oracle is an optional test dependency")

import paper  # noqa: E402
import paper_claims  # noqa: E402
import paper_contenders  # noqa: E402
import paper_counts  # noqa: E402
import paper_first_token  # noqa: E402
import paper_flops  # noqa: E402
import paper_oracles  # noqa: E402
import paper_table  # noqa: E402
import paper_turns  # noqa: E402

from fastvlm.errors import UsageError  # noqa: E402
from fastvlm_ref.config import TextConfig  # noqa: E402
from fastvlm_ref.synthetic.sizes import QWEN2_05B  # noqa: E402

WITHOUT_NORMS = 2e-3  # what the formulas leave out: biases of FastViTHD's convolutions come to 1e-3 of it


def tower(name: str, **sizes: Any) -> paper_oracles.Make:
    """One of transformers' vision models."""
    return lambda: getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes)).eval()


VIT_L = {"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16}
SIGLIP = {
    "hidden_size": 1152, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4304,
    "patch_size": 14, "image_size": 384, "vision_use_head": False,
}  # fmt: skip
GIANT = {"hidden_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 24, "use_swiglu_ffn": True}
CLIP = VIT_L | {"intermediate_size": 4096, "patch_size": 14, "image_size": 336}
TOWERS = {
    "CLIP": (replace(paper_flops.CLIP_L, depth=2), tower("CLIPVision", **CLIP), 336),
    "SigLIP": (replace(paper_flops.SO400M, depth=2), tower("SiglipVision", **SIGLIP), 384),
    "DINOv2-L": (replace(paper_flops.DINOV2_L, depth=2), tower("Dinov2", **VIT_L, image_size=518), 518),
    "DINOv2-g": (replace(paper_flops.DINOV2_G, depth=2), tower("Dinov2", **GIANT, image_size=378), 378),
    "ConvNeXt-XXL": (
        replace(paper_flops.CONVNEXT_XXL, depths=(1, 2, 3, 1)),
        tower("ConvNext", depths=[1, 2, 3, 1], hidden_sizes=[384, 768, 1536, 3072]),
        256,
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_operations_of_a_tower(name: str) -> None:
    formula, make, side = TOWERS[name]
    counted = paper_oracles.counted_flops(make, (1, 3, side, side))
    assert formula.flops(side) == pytest.approx(counted, rel=WITHOUT_NORMS)


@pytest.mark.parametrize("official", [paper_flops.LLAMA_3_8B, QWEN2_05B], ids=["Llama-3-8B", "Qwen2-0.5B"])
def test_operations_of_a_decoder(official: TextConfig) -> None:
    """torch counts what the mask hides as well, so that the half which a causal prefill saves is told apart."""
    text = replace(official, layers=2)
    counted = paper_oracles.counted_flops(lambda: paper_oracles.decoder(text), (1, 300, text.hidden_size))
    assert paper_flops.layers_flops(text, 300, causal=False) == pytest.approx(counted, rel=WITHOUT_NORMS)
    hidden = paper_flops.layers_flops(text, 300, causal=False) - paper_flops.layers_flops(text, 300)
    assert hidden == text.layers * 2 * 300**2 * text.heads * text.head_dim
    head = paper_flops.prefill_flops(text, 300) - paper_flops.layers_flops(text, 300)
    assert head == 2 * text.hidden_size * text.vocab_size


def test_operations_of_fastvithd() -> None:
    """The formula has the projector in it, 256 rows."""
    counted = paper_oracles.counted_flops(paper_oracles.fastvithd, (1, 3, 1024, 1024))
    projector = 2 * 256 * (3072 * 896 + 896**2)
    assert paper_flops.fastvithd_flops(1024) == pytest.approx(counted + projector, rel=WITHOUT_NORMS)


def test_tokens_of_fastvithd() -> None:
    tower, sides = paper_oracles.shapes_of(paper_oracles.fastvithd), (224, 256, 336)
    expected = [paper_counts.tokens_of(tower, side) for side in sides]
    assert [paper_flops.halved_tokens(side, 64) for side in sides] == expected == [16, 16, 36]


@pytest.mark.parametrize("side", [384, 768, 1152])
def test_tokens_of_llava_onevision(side: int) -> None:
    """Counted in what transformers' own code puts together."""
    with torch.device("meta"):
        model = paper_oracles.onevision().model
        tiles = (side // 384) ** 2 + 1
        features = torch.zeros(tiles, 27 * 27, 8)
        packed, _ = model.pack_image_features([features], [(side, side)], torch.zeros(8))
    assert len(packed[0]) == paper_flops.anyres_tokens(side)


def test_the_real_count() -> None:
    assert paper_flops.anyres_tokens(1152) == 7371


@pytest.mark.parametrize("side", [1000, 1536])
def test_a_picture_that_llava_onevision_would_shrink(side: int) -> None:
    with pytest.raises(ValueError, match=f"a picture of {side}: expected 1 to 9 tiles"):
        paper_flops.anyres_tokens(side)


def test_the_papers_own_sums() -> None:
    """What it prints as ratios follows from the times of its table 10."""
    ours, theirs = paper_claims.FASTVLM_05B, paper_claims.LLAVA_ONEVISION
    assert theirs.total / ours.total == pytest.approx(paper_claims.FASTER_THAN_ONEVISION, abs=0.5)
    ratio = paper_claims.CAMBRIAN.total / paper_claims.FASTVLM_7B.total
    assert ratio == pytest.approx(paper_claims.FASTER_THAN_CAMBRIAN, abs=0.05)
    assert paper_claims.CAMBRIAN.total == pytest.approx(5085, abs=0.5)  # table 6


def test_counts_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paper.main(["counts", "--json", str(tmp_path / "counts.json")]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "counts.json").read_text("utf-8"))
    (section,) = written["sections"]
    claims = {claim["text"]: claim for claim in section["claims"]}
    smaller = claims["FastViTHD smaller than SigLIP-SO400M, parameters"]
    assert (smaller["paper"], round(smaller["here"], 2)) == (3.4, 3.42)
    assert claims["FastViTHD, fewer tokens than ViT-L/14 at 336"]["here"] == 16
    assert "7,290 tokens  7,371 tokens" in printed
    assert f"threads: {written['surroundings']['threads']}" in printed
    assert written["surroundings"]["machine"]["chip"] in printed


def test_routes_take_turns() -> None:
    """A short one runs more often in its turn, every round begins with another, the first call is not counted."""
    calls: list[str] = []
    routes = {
        "short": paper_turns.Route(lambda: calls.append("s"), int(paper_turns.TURN / 3)),
        "long": paper_turns.Route(lambda: calls.append("l"), int(paper_turns.TURN * 5)),
    }
    seconds = paper_turns.in_turns(routes, 2, "cpu")
    assert "".join(calls) == "sl" + "sssl" + "lsss"
    assert {name: len(values) for name, values in seconds.items()} == {"short": 2, "long": 2}


def test_first_tokens_are_put_beside_the_paper() -> None:
    """Ratios are of the same round; the remark has table 4's number in table 10's place."""
    asked = paper_first_token.Asked("folder", None, 1024, 3, 1, "cpu")
    onevision, ours = paper_first_token.contenders(asked)
    onevision.rounds = [{"vision": 20.0, "prefill": 40.0}, {"vision": 10.0, "prefill": 20.0}] * 2
    ours.rounds = [{"vision": 4.0, "prefill": 1.0}, {"vision": 2.0, "prefill": 0.5}] * 2
    onevision.facts = ours.facts = {"tokens": 7371, "threads": 1, "peak": 5e9}
    section = paper_first_token.section([onevision, ours], asked)
    first, vision, prefill, *_ = section.claims
    assert (first.paper, first.here, vision.here, prefill.here) == (85, 12, 5, 40)
    assert first.remarks == ("49× with table 4's 235.6 ms for FastViTHD at 1024",)
    assert "LLaVA-OneVision-0.5B, transformers  1152   7,371" in paper_table.in_text(
        section, paper_table.surroundings()
    )


def test_a_build_is_named_by_its_scheme() -> None:
    asked = paper_first_token.Asked("folder", "build", 1152, 1, None, "elapsed")
    onevision, _, build = paper_first_token.contenders(asked)
    onevision.rounds, build.rounds = [{"vision": 2.0, "prefill": 2.0}], [{"vision": 1.0, "prefill": 1.0}]
    onevision.facts = {"tokens": 7371, "threads": 2, "peak": 5e9}
    build.facts = onevision.facts | {"scheme": "int4"}
    first, *_ = paper_first_token.section([onevision, build], asked).claims
    assert (first.text.split("over ")[1], first.here) == ("FastVLM-0.5B, ONNX int4 at 1152, first token", 2)
    assert any("int4 beside a model in float32" in remark for remark in first.remarks)
    assert "the paper's FastVLM is at 1024" in first.remarks


def test_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"hidden_size.*FastVLM-0\.5B"):
        paper_contenders.Reference(lambda stage: None, "tiny", 256, None, "cpu")


def test_all_runs_every_section(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in paper.SECTIONS:
        monkeypatch.setitem(paper.SECTIONS, name, lambda options, name=name: paper_table.Section(name, ()))
    assert paper.main(["all", "folder"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert [line.split(":")[0] for line in lines] == ["== counts", "== encoders", "== cambrian", "== first-token"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torchvision_ops, "usable", lambda: "timm is not installed")
    assert paper.main(["encoders"]) == 2
    assert "timm is not installed; `make oracles`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        paper.main(["counts", "--json", "/no/such/folder/at/all.json"])
