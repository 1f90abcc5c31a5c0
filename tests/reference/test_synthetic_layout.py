"""Names, shapes, dtypes and config of what `fastvlm synth` makes are those of the official checkpoints."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fastvlm.commands.synth import SIZES as NAMED
from fastvlm_ref.synthetic.config_files import config_json
from fastvlm_ref.synthetic.layout import EMBEDDING, tensors
from fastvlm_ref.synthetic.sizes import SIZES

QWEN2 = ("0.5b", "1.5b", "7b")
ENDS = (151_643, 151_645)


def check_equal(stored: dict[str, Any], name: str, layout: str) -> None:
    made = tensors(SIZES[name], layout)
    assert {tensor.stored: list(tensor.shape) for tensor in made} == stored["tensors"]
    assert len(made) == len(stored["tensors"])
    assert config_json(SIZES[name], layout, ENDS) == stored["config"]
    counters = {tensor.stored for tensor in made if tensor.dtype == "I64"}
    assert counters == {tensor for tensor in stored["tensors"] if tensor.endswith("num_batches_tracked")}
    assert {tensor.dtype for tensor in made if tensor.stored not in counters} == {stored["dtype"]}


@pytest.mark.parametrize("layout", ["llava", "hf"])
@pytest.mark.parametrize("name", QWEN2)
def test_the_official_layout(data: Path, name: str, layout: str) -> None:
    check_equal(json.loads(gzip.decompress((data / "layouts" / f"{name}-{layout}.json.gz").read_bytes())), name, layout)


@pytest.mark.parametrize("layout", ["llava", "hf"])
@pytest.mark.parametrize("name", QWEN2)
def test_the_shared_layout(shared: Path, name: str, layout: str) -> None:
    check_equal(json.loads((shared / "layouts" / f"{name}-{layout}.json").read_text("utf-8")), name, layout)


def test_a_head_is_the_table_where_the_size_ties_them() -> None:
    """Apple's 0.5B and 1.5B store the table twice; the Hugging Face port stores it once."""
    rules = {name: {t.stored: t.rule for t in tensors(SIZES[name], "llava")}["lm_head.weight"] for name in SIZES}
    assert rules == {"0.5b": EMBEDDING, "1.5b": EMBEDDING, "7b": "lm_head.weight", "vicuna-7b": "lm_head.weight"}
    assert "lm_head.weight" not in {tensor.stored for tensor in tensors(SIZES["0.5b"], "hf")}


def test_vicuna_is_a_llama_under_the_same_tower() -> None:
    shapes = {tensor.stored: tensor.shape for tensor in tensors(SIZES["vicuna-7b"], "llava")}
    config = config_json(SIZES["vicuna-7b"], "llava", (1, 2))
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (32_000, 4096)
    assert shapes["model.layers.31.self_attn.k_proj.weight"] == (4096, 4096)
    assert shapes["model.layers.31.mlp.gate_proj.weight"] == (11_008, 4096)
    assert shapes["model.mm_projector.0.weight"] == (4096, 3072)
    assert not [name for name in shapes if ".layers." in name and name.endswith(".bias")]
    assert "model.layers.32.input_layernorm.weight" not in shapes
    towers = [{t for t in tensors(SIZES[name], "llava") if "vision_tower" in t.stored} for name in ("7b", "vicuna-7b")]
    assert towers[0] == towers[1]
    assert (config["model_type"], config["rope_theta"], config["eos_token_id"]) == ("llava_llama", 1e4, 2)


def test_the_command_names_all_sizes() -> None:
    assert tuple(SIZES) == NAMED
