"""A reference that is not the build's source: what it must have in common with it to be compared at all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastvlm.build import Build
from fastvlm.errors import UsageError
from fastvlm_ref.config import FastVLMConfig

# what decides the tensors' shapes; all else (eps, theta, image size, a head of its own) may differ
SHAPES = {
    "text": ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size", "qkv_bias"),
    "vision": (
        "depths", "widths", "mlp_widths", "attention_stages", "head_dim", "features", "se_channels", "stride",
    ),
}  # fmt: skip


def check_shape(build: Build, config: FastVLMConfig, reference: str | Path) -> None:
    """Raises UsageError, with both shapes, where a checkpoint's tensors are not of the build's shapes."""
    found, expected = {"text": asdict(config.text), "vision": asdict(config.vision)}, build.manifest["model"]
    wrong = [
        f"{part}.{name} {_shown(found[part][name])}, the build {_shown(_stated(expected, part, name))}"
        for part, names in SHAPES.items()
        for name in names
        if _shown(found[part][name]) != _shown(_stated(expected, part, name))
    ]
    if wrong:
        raise UsageError(f"{reference} has another shape than this build and cannot be compared: {'; '.join(wrong)}")


def _stated(model: dict[str, Any], part: str, name: str) -> Any:
    stated = model.get(part)
    return stated.get(name) if isinstance(stated, dict) else None


def _shown(value: Any) -> str:
    """A number or a list of them as the manifest writes it."""
    return json.dumps(value)[:80]
