"""Writes a model as a LLaVA folder, as ml-fastvlm's own training leaves one: config.json, BF16 safetensors, tokenizer.

Notable choices:
- every layout that can be read is written in this one, which Apple's code and this project's readers both open;
- weights are rounded to BF16 here and nowhere else, so what is measured afterwards is what is stored.
It does not know how the model was trained, nor how a folder is put into its place (`fastvlm.publish`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastvlm.hashes import list_tree
from fastvlm.json_file import read_plain
from fastvlm_ref.checkpoint.source import TEXT_FILES, is_licence
from fastvlm_ref.config import FastVLMConfig, PromptConfig
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import QWEN_2, stop_ids
from fastvlm_ref.tokenizer import Tokenizer
from fastvlm_ref.training import examples

MOST_CARD = 1 << 16  # bytes of a card that may be one of ours
QWEN2_BOS = "<|endoftext|>"
PREFIXES = {  # our names -> LLaVA's
    "vision_encoder.": "model.vision_tower.vision_tower.model.",
    "projector.": "model.mm_projector.",
    "decoder.lm_head.": "lm_head.",
    "decoder.": "model.",
}


def save_llava(model: FastVLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes config.json, generation_config.json, weights, tokenizer and chat template into an existing `folder`."""
    tensors = {_llava_name(name): _stored(value) for name, value in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(tensors, str(weights), metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it readable by its owner alone
    stops = stop_ids(tokenizer, model.config.prompt)
    _write_json(folder / "config.json", llava_config(model.config, stops, first_id(tokenizer)))
    _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": list(stops)})
    tokenizer.save(folder)
    if (template := chat_template(model.config.prompt)) is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def chat_template(prompt: PromptConfig) -> str | None:
    """Returns the Jinja text that states a qwen_2 conversation and its system text, as transformers stores it.

    None where it cannot be stated so that the readers find it again: another template, no system text, or one with a
    control token in it. The folder is then read with the template of its decoder's family.
    """
    system = QWEN_2.system if prompt.system is None else prompt.system
    if prompt.template != QWEN_2.name or not system or any(control in system for control in QWEN_2.controls):
        return None
    quoted = system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n" + quoted + "<|im_end|>\\n' }}{% endif %}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def first_id(tokenizer: Tokenizer) -> int | None:
    """Returns `bos_token_id`: what the tokenizer begins texts with; Qwen2's begins none, its configs name the end."""
    if tokenizer.bos is None and tokenizer.has_control(QWEN2_BOS):
        return tokenizer.control(QWEN2_BOS)
    return tokenizer.bos


def llava_config(config: FastVLMConfig, stops: tuple[int, ...], bos: int | None) -> dict[str, Any]:
    """Returns the fields of config.json, spelled as Apple's checkpoints spell them."""
    text = config.text
    qwen2 = text.qkv_bias
    return {
        "architectures": ["LlavaQwen2ForCausalLM" if qwen2 else "LlavaLlamaForCausalLM"],
        "model_type": "llava_qwen2" if qwen2 else "llava_llama",
        "bos_token_id": bos,
        "eos_token_id": stops[-1] if stops else None,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "intermediate_size": text.intermediate_size,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": text.tied_head,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "image_aspect_ratio": "pad" if config.image_rule == "pad" else "square",
        "mm_hidden_size": config.vision.features,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{config.vision.image_size}",
        "tokenizer_model_max_length": text.max_positions,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mm_proj": True,
    }


def is_trained(folder: Path) -> bool:
    """Returns whether `folder` holds a checkpoint that this project trained and nothing that others put there.

    Only such a folder may be replaced by `--overwrite`.
    """
    try:
        card = read_plain(folder / "README.md", MOST_CARD).decode("utf-8")
    except (OSError, ValueError):  # none, or not one that this project wrote
        return False
    if not (folder / "config.json").is_file() or "`fastvlm train`" not in card:
        return False
    ours = {*TEXT_FILES, "model.safetensors", *(f"pictures/{name}" for name in examples.FILES)}
    return all(name in ours or is_licence(name) for name in list_tree(folder))


def _llava_name(name: str) -> str:
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[prefix] + name.removeprefix(prefix)


def _stored(value: Tensor) -> Tensor:
    """BF16 in plain row-major memory (training keeps channels last); counters stay integers; tied tensors part."""
    kept = value.detach().to("cpu", torch.bfloat16) if value.is_floating_point() else value.detach().cpu()
    return kept.clone(memory_format=torch.contiguous_format)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
