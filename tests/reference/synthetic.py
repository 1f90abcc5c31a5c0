"""Small seeded checkpoints for tests, written in every layout from one set of tensors.

`state(sizes)` makes the tensors under our names; `write_llava`, `write_hf` and `write_mlx` store them as each project
does. The name maps here are written from the projects' own layouts, apart from those in the package, so that one
checks the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from fastvlm_ref.config import FastVLMConfig, TextConfig, VisionConfig
from fastvlm_ref.model.fastvlm import FastVLM

VISION = VisionConfig(
    image_size=128,
    depths=(1, 2, 1, 2, 1),
    widths=(8, 16, 32, 64, 128),
    mlp_widths=(16, 48, 64, 128, 96),
    features=256,
    se_channels=12,
)
TEXT = TextConfig(
    hidden_size=64, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate_size=96, vocab_size=288,
    rms_norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tied_head=True, max_positions=512,
)  # fmt: skip
SMALL = FastVLMConfig("llava_qwen2", VISION, TEXT)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def untied(config: FastVLMConfig = SMALL) -> FastVLMConfig:
    """Returns the same sizes with a head of its own."""
    return replace(config, text=replace(config.text, tied_head=False))


@lru_cache(maxsize=8)
def _state(config: FastVLMConfig, seed: int, dtype: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in FastVLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked") or (name.endswith("lm_head.weight") and config.text.tied_head):
            continue
        value = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif "layer_scale" in name:
            value = 0.3 + 0.05 * value
        elif len(shape) > 1:
            value *= shape[1:].numel() ** -0.5
        else:
            value = 0.1 * value + (0 if name.endswith(("bias", "mean")) else 1)
        found[name] = value.to(DTYPES[dtype])
    return found


def state(config: FastVLMConfig = SMALL, seed: int = 0, dtype: str = "BF16") -> dict[str, Tensor]:
    """Returns every tensor by our names, random but lively, rounded to `dtype` and held as it."""
    return {name: value.clone() for name, value in _state(config, seed, dtype).items()}


def llava_config(config: FastVLMConfig = SMALL, **changes: Any) -> dict[str, Any]:
    """Returns config.json of a LLaVA folder; `changes` replace fields, None removes one."""
    text = config.text
    found = {
        "architectures": ["LlavaQwen2ForCausalLM"], "model_type": config.model_type,
        "eos_token_id": 258, "hidden_act": "silu", "image_aspect_ratio": "pad",
        "mm_hidden_size": config.vision.features, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": f"mobileclip_l_{config.vision.image_size}",
        "hidden_size": text.hidden_size, "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads, "head_dim": text.head_dim, "intermediate_size": text.intermediate_size,
        "vocab_size": text.vocab_size, "rms_norm_eps": text.rms_norm_eps, "rope_theta": text.rope_theta,
        "max_position_embeddings": text.max_positions, "use_sliding_window": False, "sliding_window": 32768,
        "tie_word_embeddings": True,
    }  # fmt: skip
    found |= changes
    return {name: value for name, value in found.items() if value is not None}


def llava_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under LLaVA's names."""

    def name(ours: str) -> str:
        for mine, theirs in (
            ("vision_encoder.", "model.vision_tower.vision_tower.model."), ("projector.", "model.mm_projector."),
            ("decoder.lm_head.", "lm_head."), ("decoder.", "model."),
        ):  # fmt: skip
            if ours.startswith(mine):
                return theirs + ours.removeprefix(mine)
        return ours

    return {name(ours): value for ours, value in tensors.items()}


def hf_names(tensors: Mapping[str, Tensor], config: FastVLMConfig = SMALL) -> dict[str, Tensor]:
    """Returns the tensors under the names of transformers' fast_vlm, whose tower is timm's."""
    places: list[str] = []
    for index in range(len(config.vision.depths)):
        if index:
            places.append(f"stages.{index}.downsample")
        if config.vision.attention_stages[index]:
            places.append(f"stages.{index}.pos_emb")
        places.append(f"stages.{index}.blocks")

    def name(ours: str) -> str:
        if ours.startswith("vision_encoder."):
            inner = (
                ours.removeprefix("vision_encoder.")
                .replace("patch_embed.", "stem.")
                .replace("conv_exp.", "final_conv.")
            )
            inner = re.sub(r"network\.(\d+)", lambda found: places[int(found[1])], inner)
            inner = inner.replace("convffn.", "mlp.").replace("se.reduce", "se.fc1").replace("se.expand", "se.fc2")
            inner = (
                inner.replace("lkb_reparam", "reparam_conv")
                .replace("lkb_origin", "large_conv")
                .replace(".pe.", ".pos_enc.")
            )
            inner = (
                inner.replace("rbr_conv", "conv_kxk").replace("rbr_scale", "conv_scale").replace("rbr_skip", "identity")
            )
            inner = re.sub(r"(layer_scale(_\d)?)$", r"\1.gamma", inner)
            return "model.vision_tower.timm_model." + inner
        if ours.startswith("projector."):
            return "model.multi_modal_projector." + ours.removeprefix("projector.").replace("0.", "linear_1.").replace(
                "2.", "linear_2."
            )
        return (
            "lm_head.weight"
            if ours == "decoder.lm_head.weight"
            else "model.language_model." + ours.removeprefix("decoder.")
        )

    return {name(ours): value for ours, value in tensors.items()}


def mlx_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors as mlx-vlm stores them: its names, convolutions O,H,W,I, layer scales (1, 1, C)."""
    found = {}
    for ours, value in tensors.items():
        if ours.startswith("vision_encoder."):
            inner = ours.removeprefix("vision_encoder.").replace("patch_embed.", "patch_embed.blocks.")
            if value.ndim == 4:
                value = value.permute(0, 2, 3, 1)
            elif "layer_scale" in ours:
                value = value.permute(1, 2, 0)
            found["vision_tower.vision_model." + inner] = value.contiguous()
        elif ours.startswith("projector."):
            found["mm_" + ours] = value
        elif ours == "decoder.lm_head.weight":
            found["lm_head.weight"] = value
        else:
            found["language_model.model." + ours.removeprefix("decoder.")] = value
    return found


def hf_config(config: FastVLMConfig = SMALL, **text_changes: Any) -> dict[str, Any]:
    """Returns config.json of a Hugging Face fast_vlm folder."""
    text = config.text
    inner = {
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": text.hidden_size, "num_hidden_layers": text.layers,
        "layer_types": ["full_attention"] * text.layers, "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads, "intermediate_size": text.intermediate_size,
        "vocab_size": text.vocab_size, "rms_norm_eps": text.rms_norm_eps,
        "rope_parameters": {"rope_theta": text.rope_theta, "rope_type": "default"},
        "max_position_embeddings": text.max_positions, "use_sliding_window": False, "sliding_window": None,
        "eos_token_id": None, "tie_word_embeddings": True,
    }  # fmt: skip
    return {
        "model_type": "fast_vlm", "image_token_index": 259, "tie_word_embeddings": True,
        "text_config": inner | text_changes,
        "vision_config": {"architecture": "fastvit_mci3", "model_type": "timm_wrapper"},
    }  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """Writes a byte-level tokenizer without merges: 256 bytes and three control tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROLS))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"})
    )


def write(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], shards: int = 1) -> Path:
    """Writes a checkpoint folder: config.json, tokenizer, and one weight file or `shards` with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    plain = {name: value.contiguous().clone() for name, value in tensors.items()}
    if shards == 1:
        save_file(plain, folder / "model.safetensors", {"format": "pt"})
        return folder
    placed, names = {}, list(plain)
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: plain[name] for name in names[index::shards]}
        save_file(part, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def write_llava(
    folder: Path, config: FastVLMConfig = SMALL, *, seed: int = 0, dtype: str = "BF16", shards: int = 1, **changes: Any
) -> Path:
    """Writes a LLaVA folder of seeded weights."""
    return write(folder, llava_names(state(config, seed, dtype)), llava_config(config, **changes), shards)
