"""An adapter merged while reading gives the weights, and the answers, that peft's formula gives."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from safetensors.torch import save_file
from synthetic import SMALL, llava_config, state, write
from torch import Tensor

from fastvlm.errors import CheckpointError, ConfigError, MissingBase, TensorError
from fastvlm_ref import load_checkpoint

QUERY, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
BASE = state()


def factors(rank: int = 4, seed: int = 3) -> dict[str, Tensor]:
    """Returns lora_A and lora_B of two modules, under peft's names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module, (out, width) in {QUERY: (64, 64), UP: (96, 64)}.items():
        found[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        found[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return found


def adapter(folder: Path, tensors: dict[str, Tensor], others: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """Writes an adapter folder: adapter_config.json, the factors, and LLaVA's pickle of everything else."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "apple/FastVLM 0.5B"}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    save_file(tensors, folder / "adapter_model.safetensors")
    if others is not None:
        torch.save(others, folder / "non_lora_trainables.bin")
    return folder


def weight(model: torch.nn.Module, module: str) -> Tensor:
    return model.get_parameter(module.replace("model.", "decoder.", 1) + ".weight")


def expected(tensors: dict[str, Tensor], module: str, scale: float) -> Tensor:
    base = BASE[module.replace("model.", "decoder.", 1) + ".weight"].float()
    name = f"base_model.model.{module}."
    return base + scale * tensors[name + "lora_B.weight"] @ tensors[name + "lora_A.weight"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return synthetic.write_llava(tmp_path / "base")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, (2.0, 2.0)),
        ({"lora_alpha": 1}, (0.25, 0.25)),
        ({"use_rslora": True}, (8 / math.sqrt(4), 8 / math.sqrt(4))),
        ({"alpha_pattern": {"q_proj": 20}}, (5.0, 2.0)),
        ({"alpha_pattern": {"layers.1.mlp.up_proj": 2}}, (2.0, 0.5)),
        ({"r": 16, "rank_pattern": {"q_proj": 4, "up_proj": 4}}, (2.0, 2.0)),
    ],
)
def test_the_scale(
    tmp_path: Path, base: Path, changes: dict[str, Any], scales: tuple[float, float], stream: bool
) -> None:
    tensors = factors()
    model = load_checkpoint(adapter(tmp_path / "it", tensors, **changes), base=base, stream=stream)
    from fastvlm_ref.checkpoint import materialised

    with materialised(model):
        for module, scale in zip((QUERY, UP), scales, strict=True):
            torch.testing.assert_close(weight(model, module), expected(tensors, module, scale), rtol=1e-5, atol=1e-5)
        assert torch.equal(
            weight(model, "model.layers.2.mlp.up_proj"), BASE["decoder.layers.2.mlp.up_proj.weight"].float()
        )
    assert model.source is not None
    assert model.source.layout == "llava+lora"
    assert {"adapter_model.safetensors", "adapter_config.json", "base/model.safetensors"} <= model.source.files().keys()


def test_the_answer_is_that_of_the_two_paths(tmp_path: Path, base: Path) -> None:
    """y = W·x + scale·B·(A·x), computed apart, is what the merged layer gives."""
    tensors = factors()
    model = load_checkpoint(adapter(tmp_path / "it", tensors), base=base)
    x = torch.randn(5, 64)
    layer = model.get_submodule("decoder.layers.1.mlp.up_proj")
    name = f"base_model.model.{UP}.lora_"
    apart = x @ BASE["decoder.layers.1.mlp.up_proj.weight"].float().T
    apart = apart + 2.0 * (x @ tensors[name + "A.weight"].T) @ tensors[name + "B.weight"].T
    torch.testing.assert_close(layer(x), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["hf", "mlx"])
def test_an_adapter_of_another_layout(tmp_path: Path, layout: str) -> None:
    """LLaVA's names on a Hugging Face or MLX base: the names meet under ours."""
    if layout == "hf":
        base = write(tmp_path / "base", synthetic.hf_names(BASE), synthetic.hf_config())
    else:
        base = write(tmp_path / "base", synthetic.mlx_names(BASE), llava_config())
    tensors = factors()
    model = load_checkpoint(adapter(tmp_path / "it", tensors), base=base)
    torch.testing.assert_close(weight(model, QUERY), expected(tensors, QUERY, 2.0), rtol=1e-5, atol=1e-5)


def test_an_adapter_with_hugging_face_names_reaches_the_tower(tmp_path: Path) -> None:
    base = write(tmp_path / "base", synthetic.hf_names(BASE), synthetic.hf_config())
    name = "base_model.model.model.vision_tower.timm_model.stages.3.blocks.0.token_mixer.qkv"
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 64), f"{name}.lora_B.weight": torch.ones(192, 4)}
    model = load_checkpoint(adapter(tmp_path / "it", tensors), base=base)
    plain = BASE["vision_encoder.network.7.0.token_mixer.qkv.weight"].float()
    torch.testing.assert_close(model.get_parameter("vision_encoder.network.7.0.token_mixer.qkv.weight"), plain + 8.0)


def test_embeddings_fan_in_and_convolutions(tmp_path: Path, base: Path) -> None:
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = {name + "A": torch.randn(4, 288), name + "B": torch.randn(64, 4)}
    point = "model.vision_tower.vision_tower.model.network.0.0.convffn.fc1"
    tensors |= {f"{point}.lora_A.weight": torch.randn(4, 8, 1, 1), f"{point}.lora_B.weight": torch.randn(16, 4, 1, 1)}
    folder = adapter(tmp_path / "it", tensors)
    model, streamed = load_checkpoint(folder, base=base), load_checkpoint(folder, base=base, stream=True)
    change = 2 * (tensors[name + "B"] @ tensors[name + "A"]).T
    table = BASE["decoder.embed_tokens.weight"].float() + change
    torch.testing.assert_close(model.decoder.embed_tokens.weight, table)
    assert model.config.text.tied_head
    ids = torch.tensor([3, 3, 287])
    torch.testing.assert_close(streamed.decoder.embed_tokens(ids), table[ids])
    fc1 = BASE["vision_encoder.network.0.0.convffn.fc1.weight"].float()
    fc1 = (
        fc1
        + 2
        * (tensors[f"{point}.lora_B.weight"].flatten(1) @ tensors[f"{point}.lora_A.weight"].flatten(1))[..., None, None]
    )
    torch.testing.assert_close(model.get_parameter("vision_encoder.network.0.0.convffn.fc1.weight"), fc1)


def test_fan_in_fan_out_turns_the_change(tmp_path: Path, base: Path) -> None:
    tensors = {name: value for name, value in factors().items() if QUERY in name}
    model = load_checkpoint(adapter(tmp_path / "it", tensors, fan_in_fan_out=True), base=base)
    plain = BASE["decoder.layers.0.self_attn.q_proj.weight"].float()
    turned = plain + (expected(tensors, QUERY, 2.0) - plain).T
    torch.testing.assert_close(weight(model, QUERY), turned, rtol=1e-5, atol=1e-5)


def test_whole_tensors_replace_the_bases(tmp_path: Path, base: Path) -> None:
    """modules_to_save in both spellings, a trained bias, a head that is its own from now on, LLaVA's pickle."""
    generator = torch.Generator().manual_seed(9)
    new = {
        name: torch.randn(shape, generator=generator)
        for name, shape in {"head": (288, 64), "bias": (64,), "down": (64, 96)}.items()
    }
    tensors = factors() | {
        "base_model.model.lm_head.modules_to_save.weight": new["head"],
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias": new["bias"],
        "base_model.model.model.layers.2.mlp.down_proj.weight": new["down"],
    }
    others = {
        "base_model.model.model.mm_projector.0.weight": torch.full((64, 256), 0.5, dtype=torch.bfloat16),
        "model.mm_projector.2.bias": torch.full((64,), 0.25),
    }
    folder = adapter(tmp_path / "it", tensors, others)
    model = load_checkpoint(folder, base=base, allow_pickle=True)
    assert not model.config.text.tied_head
    assert torch.equal(model.decoder.lm_head.weight, new["head"])
    assert torch.equal(model.get_parameter("decoder.layers.0.self_attn.q_proj.bias"), new["bias"])
    assert torch.equal(model.get_parameter("decoder.layers.2.mlp.down_proj.weight"), new["down"])
    assert (model.projector[0].weight == 0.5).all()
    assert (model.projector[2].bias == 0.25).all()
    torch.testing.assert_close(weight(model, QUERY), expected(tensors, QUERY, 2.0), rtol=1e-5, atol=1e-5)


def test_the_adapters_own_files_come_first(tmp_path: Path, base: Path) -> None:
    folder = adapter(tmp_path / "it", factors())
    (folder / "config.json").write_text(json.dumps(llava_config(SMALL, image_aspect_ratio="square")))
    (base / "LICENSE").write_text("Apple Machine Learning Research Model License Agreement")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    model = load_checkpoint(folder, base=base)
    assert model.config.image_rule == "crop"
    assert model.config.licence == "apple-amlr"  # it covers whatever is made from the weights


def test_a_pickle_is_opened_only_when_allowed_and_never_runs(tmp_path: Path, base: Path) -> None:
    folder = adapter(tmp_path / "it", factors(), {"model.mm_projector.2.bias": torch.zeros(64)})
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        load_checkpoint(folder, base=base)

    trap = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (Path.touch, (trap,))

    for content in (pickle.dumps({"model.mm_projector.2.bias": Trap()}), b"", b"PK\x03\x04", b"\x80\x02."):
        (folder / "non_lora_trainables.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"non_lora_trainables\.bin cannot be read as a pickle of tensors"):
            load_checkpoint(folder, base=base, allow_pickle=True)
    assert not trap.exists()

    for other in ([1], {"a": 1}, {1: torch.zeros(1)}, {"a": torch.zeros(1, dtype=torch.int64)}):
        torch.save(other, folder / "non_lora_trainables.bin")
        with pytest.raises(CheckpointError, match=r"something else|opcode EMPTY_LIST at 2, which tensors do not need"):
            load_checkpoint(folder, base=base, allow_pickle=True)


def test_without_its_base_one_error_with_the_options(tmp_path: Path) -> None:
    plain = adapter(tmp_path / "it", factors())
    with pytest.raises(MissingBase) as caught:
        load_checkpoint(plain)
    assert str(caught.value).endswith("add --base 'apple/FastVLM 0.5B'")

    llava = adapter(tmp_path / "that", factors(), {}, base_model_name_or_path=None)
    with pytest.raises(MissingBase) as caught:
        load_checkpoint(llava)
    assert caught.value.options == ("--base", "CHECKPOINT", "--allow-pickle")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"alpha_pattern": {"model.*q_proj": 3}}, "supported are plain module names"),
        ({"rank_pattern": [1]}, "no table of numbers"),
    ],
)
def test_methods_that_are_not_plain_lora(tmp_path: Path, base: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(adapter(tmp_path / "it", factors(), **changes), base=base)
    assert sentence in str(caught.value)


def test_factors_that_do_not_fit_are_listed(tmp_path: Path, base: Path) -> None:
    tensors = factors() | {
        "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 64),
        "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": torch.zeros(4, 64),
        "base_model.model.model.layers.2.mlp.gate_proj.lora_A.weight": torch.zeros(4, 32),
        "base_model.model.model.layers.2.mlp.gate_proj.lora_B.weight": torch.zeros(96, 4),
        "base_model.model.model.layers.2.mlp.gate_proj.lora_magnitude_vector": torch.zeros(96),
    }
    with pytest.raises(TensorError) as caught:
        load_checkpoint(adapter(tmp_path / "it", tensors), base=base)
    for part in (
        "the base has no model.layers.9.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj has lora_A alone",
        "the adapter changes [96, 32], the base has [96, 64]",
        "lora_magnitude_vector belongs to another method",
    ):
        assert part in str(caught.value)


def test_a_rank_other_than_stated_is_seen(tmp_path: Path, base: Path) -> None:
    with pytest.raises(TensorError, match=r"has rank 4, adapter_config\.json states 8"):
        load_checkpoint(adapter(tmp_path / "it", factors(), r=8), base=base)


def test_a_folder_with_the_config_alone(tmp_path: Path, base: Path) -> None:
    folder = adapter(tmp_path / "it", factors())
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_checkpoint(folder, base=base)
