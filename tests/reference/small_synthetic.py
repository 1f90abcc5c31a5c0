"""Small sizes of `fastvlm synth`, made by the same code as the official ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastvlm_ref.config import VisionConfig
from fastvlm_ref.synthetic.sizes import SIZES, Size

DEEP = VisionConfig(  # narrower than the real tower and about as deep: activations grow with the depth
    image_size=256, depths=(2, 12, 24, 2, 2), widths=(32, 64, 128, 256, 512), mlp_widths=(64, 128, 256, 512, 1024),
    features=1024, se_channels=32,
)  # fmt: skip
SHALLOW = VisionConfig(
    image_size=128, depths=(1, 1, 1, 1, 1), widths=(16, 32, 32, 64, 64), mlp_widths=(32, 64, 64, 128, 128),
    features=128, se_channels=8,
)  # fmt: skip


def small(name: str, vision: VisionConfig = SHALLOW, **changes: Any) -> Size:
    """Returns size `name` with four narrow layers, a small tower, 700 tokens; `changes` are to its text."""
    full = SIZES[name]
    heads = {"heads": 4, "kv_heads": 4 if full.llama else 2, "head_dim": 32}
    numbers = {"hidden_size": 128, "layers": 4, "intermediate_size": 256, "vocab_size": 736, **heads, **changes}
    padded = None if full.padded_rows is None else 768
    return replace(full, text=replace(full.text, **numbers), tokens=700, padded_rows=padded, vision=vision)
