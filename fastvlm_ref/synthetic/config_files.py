"""config.json of each layout, field by field as the official checkpoints have it, and what stands beside it.

The stop and begin ids are the tokenizer's; all else follows from the size.
Sources: config.json of Apple's checkpoints and of their Hugging Face ports; lmsys/vicuna-7b-v1.5.
"""

from __future__ import annotations

from typing import Any

from fastvlm_ref.config import TextConfig
from fastvlm_ref.synthetic.sizes import Size

IMAGE_AFTER_CONTROLS = 3  # Hugging Face ports add `<image>` behind Qwen2's three control tokens
PORT_WINDOW_LAYERS = 28  # stated by every port, whatever its depth


def config_json(size: Size, layout: str, ends: tuple[int | None, int | None]) -> dict[str, Any]:
    """Returns config.json of `size` in `layout` ("llava" or "hf"); `ends` are the ids that begin and end a text."""
    return _hugging_face(size) if layout == "hf" else _llava(size, *ends)


def _llava(size: Size, begin: int | None, end: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "architectures": ["LlavaLlamaForCausalLM" if size.llama else "LlavaQwen2ForCausalLM"],
        "model_type": "llava_llama" if size.llama else "llava_qwen2",
        "attention_dropout": 0.0, "bos_token_id": begin, "eos_token_id": end, "hidden_act": "silu",
        "image_aspect_ratio": "pad", "image_grid_pinpoints": None, "initializer_range": 0.02,
        "max_position_embeddings": size.text.max_positions, "mm_hidden_size": size.vision.features,
        "mm_patch_merge_type": "flat", "mm_projector_lr": None, "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2, "mm_vision_tower": f"mobileclip_l_{size.vision.image_size}",
        "rms_norm_eps": size.text.rms_norm_eps, "rope_theta": size.text.rope_theta,
        "tokenizer_model_max_length": min(8192, size.text.max_positions), "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16", "transformers_version": "4.39.3", "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": True, "use_cache": True, "use_mm_proj": True,
    }  # fmt: skip
    found |= _decoder(size.text, size.text.vocab_size)
    if not size.llama:
        found["use_sliding_window"] = False
        found |= {"max_window_layers": size.text.layers, "sliding_window": size.sliding_window}
    return found


def _decoder(text: TextConfig, rows: int) -> dict[str, Any]:
    """The decoder's sizes; a head dim that follows from them is not stated, as in the official files."""
    found = {
        "hidden_size": text.hidden_size, "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads, "intermediate_size": text.intermediate_size, "vocab_size": rows,
        "tie_word_embeddings": text.tied_head,
    }  # fmt: skip
    if text.head_dim * text.heads != text.hidden_size:
        found["head_dim"] = text.head_dim
    return found


def _hugging_face(size: Size) -> dict[str, Any]:
    text = size.text
    inner = {
        "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None, "hidden_act": "silu",
        "initializer_range": 0.02, "layer_types": ["full_attention"] * text.layers,
        "max_position_embeddings": text.max_positions, "max_window_layers": PORT_WINDOW_LAYERS, "model_type": "qwen2",
        "pad_token_id": None, "rms_norm_eps": text.rms_norm_eps,
        "rope_parameters": {"rope_theta": text.rope_theta, "rope_type": "default"}, "sliding_window": None,
        "use_cache": True, "use_sliding_window": False,
    }  # fmt: skip
    return {
        "image_seq_length": 576, "image_token_index": size.tokens + IMAGE_AFTER_CONTROLS, "model_type": "fast_vlm",
        "multimodal_projector_bias": True, "projector_hidden_act": "gelu",
        "text_config": inner | _decoder(text, size.rows("hf")),
        "tie_word_embeddings": text.tied_head, "transformers_version": "5.23.0",
        "vision_config": {
            "architecture": "fastvit_mci3", "do_pooling": True, "global_pool": "avg",
            "hidden_size": size.vision.features, "initializer_range": 0.02, "label_names": ["LABEL_0", "LABEL_1"],
            "model_args": {"inference_mode": True}, "model_type": "timm_wrapper", "num_classes": 2,
        },
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    }  # fmt: skip


def preprocessor_json(size: Size) -> dict[str, Any]:
    """Returns preprocessor_config.json of a Hugging Face port: shortest edge to the side, centre crop, no mean."""
    side = size.vision.image_size
    return {
        "crop_size": {"height": side, "width": side}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0], "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": side},
    }  # fmt: skip
