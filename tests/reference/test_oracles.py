"""The model beside transformers' own, live: Qwen2, Llama, and FastVlm with timm's tower, in float32.

Weights are random and small; both sides get the same ones, transformers through `save_pretrained` and our reader where
a whole checkpoint is compared. `make oracles` installs what is needed and prints the figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision_ops
from reference_limits import check
from synthetic import write_tokenizer

from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint.text_config import text_config
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.kv_cache import KVCache

WITHOUT_TIMM = torchvision_ops.usable()  # before transformers, which imports torchvision where it finds it
transformers = pytest.importorskip("transformers", reason="the oracle is an optional test dependency")

SIZES = {
    "vocab_size": 320, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "attn_implementation": "eager",
}  # fmt: skip


def lively(module: torch.nn.Module) -> None:
    """Gives every parameter and statistic a value that shows in the output."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif "gamma" in name or "layer_scale" in name:
                value.copy_(0.3 + 0.05 * torch.randn(value.shape, generator=generator))
            elif value.is_floating_point() and "inv_freq" not in name:
                spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
                centre = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
                value.copy_(centre + spread * torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("theta", [1e6, 1e4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
@torch.inference_mode()
def test_decoder(family: str, tied: bool, theta: float) -> None:
    """Prefill of 9 positions, then 5 cached steps, grouped-query attention."""
    stated = SIZES | {"tie_word_embeddings": tied, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    kind = {"qwen2": ("Qwen2Config", "Qwen2ForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}[family]
    config = getattr(transformers, kind[0])(**stated)
    theirs = getattr(transformers, kind[1])(config).float().eval()
    lively(theirs)
    weights = {name.removeprefix("model."): value for name, value in theirs.state_dict().items()}
    text, assumed = text_config(config.to_dict(), "layers.0.self_attn.q_proj.bias" in weights, tied)
    assert assumed == []
    assert text.rope_theta == theta
    assert text.qkv_bias == (family == "qwen2")
    ours = Decoder(text).eval()
    ours.load_state_dict(weights)

    ids = torch.randint(0, 320, (1, 14), generator=torch.Generator().manual_seed(1))
    cache = KVCache(text, 16)
    past = transformers.DynamicCache(config=config)
    for begin, end in [(0, 9), *((at, at + 1) for at in range(9, 14))]:
        piece = ids[:, begin:end]
        expected = theirs(piece, past_key_values=past, use_cache=True).logits
        found = ours.head(ours(ours.embed_tokens(piece), cache))
        check("oracle_decoder", expected, found, f"positions {begin} to {end}")


with_timm = pytest.mark.skipif(bool(WITHOUT_TIMM), reason=str(WITHOUT_TIMM))


@with_timm
@torch.inference_mode()
def test_fast_vlm_with_timms_tower(tmp_path: Path) -> None:
    """A Hugging Face folder written by transformers, official tower sizes, read by us: ids and pixels to logits."""
    text = SIZES | {
        "model_type": "qwen2",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    }
    text.pop("attn_implementation")
    tower = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "hidden_size": 3072,
        "do_pooling": True,
        "model_args": {"inference_mode": True},
    }
    config = transformers.FastVlmConfig(
        text_config=text, vision_config=tower, image_token_id=300, tie_word_embeddings=True
    )
    theirs = transformers.FastVlmForConditionalGeneration(config).float().eval()
    lively(theirs)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert ours.config.vision.depths == (2, 12, 24, 4, 2)
    assert ours.config.prompt.image_token_id == 300

    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    features = theirs.model.vision_tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    found = ours.vision_encoder(pixels)
    check("oracle_features", features, found)
    expected = theirs(input_ids=torch.tensor([[5, 6, 300, 300, 300, 300, 7, 8]]), pixel_values=pixels).logits
    logits = ours(torch.tensor([[5, 6, -200, 7, 8]]), pixels)
    check("oracle_logits", expected, logits)


@with_timm
@torch.inference_mode()
def test_timms_own_training_branches(tmp_path: Path) -> None:
    """timm's unfused tower beside ours, fused while reading: names and arithmetic against a third party's."""
    text = SIZES | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    text.pop("attn_implementation")
    tower = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "hidden_size": 3072,
        "model_args": {"inference_mode": False},
    }
    config = transformers.FastVlmConfig(
        text_config=text, vision_config=tower, image_token_id=300, tie_word_embeddings=True
    )
    theirs = transformers.FastVlmForConditionalGeneration(config).float().eval()
    lively(theirs)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    ours = load_checkpoint(tmp_path)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = theirs.model.vision_tower.double()(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    found = ours.vision_encoder.double()(pixels)
    check("oracle_branches", expected, found)
