"""Every name and shape of the six official checkpoints maps onto the model, without weights and without memory.

`tests/data/layouts` holds their configs and their tensors' names and shapes; values are stand-ins that cannot be read.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvlm.errors import TensorError
from fastvlm_ref.checkpoint.fuse import fuse
from fastvlm_ref.checkpoint.layouts import layout_of, renamed
from fastvlm_ref.checkpoint.load import check_tensors, read_config
from fastvlm_ref.checkpoint.opening import Opened
from fastvlm_ref.checkpoint.source import Source
from fastvlm_ref.checkpoint.tensors import LazyTensor
from fastvlm_ref.config import FastVLMConfig, VisionConfig
from fastvlm_ref.model.fastvlm import FastVLM

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"
TEXT = {  # H, layers, heads, kv heads, intermediate, rows in LLaVA, rows in Hugging Face
    "0.5b": (896, 24, 14, 2, 4864, 151936, 152000),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, 152000),
    "7b": (3584, 28, 28, 4, 18944, 152064, 152128),
}


def stand_in(name: str, shape: list[int], dtype: str, tied: bool) -> LazyTensor:
    """A tensor without values; head and embedding compare equal where the size ties them."""

    def read() -> Tensor:
        raise AssertionError(f"{name} was read")

    def pieces() -> Iterator[Tensor]:
        yield torch.tensor([1.0 if tied or "lm_head" in name else 0.0])

    return LazyTensor(tuple(shape), dtype, "model.safetensors", read, lambda ids: read(), pieces)


def official(size: str, layout: str, tmp_path: Path, drop: str | None = None) -> tuple[Opened, dict[str, Any]]:
    stored = json.loads(gzip.decompress((LAYOUTS / f"{size}-{layout}.json.gz").read_bytes()))
    tied = size != "7b"
    tensors = {
        name: stand_in(name, shape, stored["dtype"], tied) for name, shape in stored["tensors"].items() if name != drop
    }
    source = Source(size, None, layout, tmp_path, ())
    return Opened(stored["config"], (tmp_path,), layout_of(tensors), fuse(renamed(tensors)), source, ()), stored


def model_of(opened: Opened) -> tuple[FastVLM, FastVLMConfig]:
    config = read_config(opened, image_rule=None, template=None, system=None)
    with torch.device("meta"):
        return FastVLM(config), config


@pytest.mark.parametrize("layout", ["llava", "hf"])
@pytest.mark.parametrize("size", TEXT)
def test_official_names_and_shapes(tmp_path: Path, size: str, layout: str) -> None:
    opened, _ = official(size, layout, tmp_path)
    assert opened.layout == layout
    model, config = model_of(opened)
    check_tensors(model, opened)
    text = config.text
    found = (text.hidden_size, text.layers, text.heads, text.kv_heads, text.intermediate_size, text.vocab_size)
    assert found == (*TEXT[size][:5], TEXT[size][5 if layout == "llava" else 6])
    assert (text.head_dim, text.rope_theta, text.rms_norm_eps, text.qkv_bias) == (
        text.hidden_size // text.heads,
        1e6,
        1e-6,
        True,
    )
    assert text.tied_head == (size != "7b")
    assert config.vision == VisionConfig()
    assert config.image_rule == ("pad" if layout == "llava" else "crop")
    millions = sum(value.numel() for value in model.vision_encoder.parameters()) / 1e6
    assert 122 < millions < 126  # 125.07 with the CLIP head, which is not part of it


def test_a_lost_tensor_is_named(tmp_path: Path) -> None:
    lost = "model.vision_tower.timm_model.stages.4.pos_emb.reparam_conv.bias"
    opened, _ = official("0.5b", "hf", tmp_path, drop=lost)
    with pytest.raises(
        TensorError, match=r"^1 tensor .* missing vision_encoder\.network\.9\.reparam_conv\.bias \[1536\]$"
    ):
        check_tensors(model_of(opened)[0], opened)
