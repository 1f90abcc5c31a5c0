"""The sizes of a vision tower, read off its tensors' names and shapes.

No table of model names: a fine-tune with other depths, widths or stages just works. What a missing tensor would have
told is taken from its neighbours, so that the tensor itself is then reported with all the others that are missing.
Two sizes leave no trace in any tensor: the heads' dim (32 in every FastViT) and the image side (config.json has it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from fastvlm.errors import TensorError
from fastvlm_ref.checkpoint.tensors import LazyTensor
from fastvlm_ref.config import VisionConfig

PREFIX = "vision_encoder."
HEAD_DIM = 32


def vision_config(tensors: Mapping[str, LazyTensor], image_size: int) -> VisionConfig:
    """Returns the tower's sizes from fused tensors by our names; raises TensorError where they cannot be told."""
    shapes = {name.removeprefix(PREFIX): tensor.shape for name, tensor in tensors.items() if name.startswith(PREFIX)}
    stages = _stages(shapes)
    attention = tuple(
        any(f"network.{at}.{block}.token_mixer.qkv.weight" in shapes for block in range(depth)) for at, depth in stages
    )
    config = VisionConfig(
        image_size=image_size,
        depths=tuple(depth for _, depth in stages),
        widths=tuple(_width(shapes, at, "convffn.fc2.weight") for at, _ in stages),
        mlp_widths=tuple(_width(shapes, at, "convffn.fc1.weight") for at, _ in stages),
        attention_stages=attention,
        head_dim=HEAD_DIM,
        features=_features(tensors, shapes),
        se_channels=_first(shapes, r"conv_exp\.se\.reduce\.(weight|bias)") or 0,
        stride=2 ** (len(stages) + 1),  # 4 in the stem, 2 between stages
    )
    chain = (*config.widths, config.features)
    if any(wide % narrow for narrow, wide in pairwise(chain)):
        raise TensorError(f"the tower's widths are {list(chain)}, expected each a multiple of the one before it")
    odd = [width for width, heads in zip(config.widths, attention, strict=True) if heads and width % HEAD_DIM]
    if odd:
        raise TensorError(f"attention stages are {odd} channels wide, expected multiples of the head dim {HEAD_DIM}")
    return config


def _stages(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    """Returns (place in `network`, number of blocks) of each stage, in order."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if found := re.match(r"network\.(\d+)\.(\d+)\.", name):
            at, block = int(found[1]), int(found[2])
            blocks[at] = max(blocks.get(at, 0), block + 1)
    if sum(blocks.values()) > len(shapes):  # a block has a dozen tensors; a name alone must not cost memory
        raise TensorError(f"the vision tower numbers {sum(blocks.values())} blocks but holds {len(shapes)} tensors")
    if not blocks:
        raise TensorError("the vision tower has no stages (vision_encoder.network.N.M.*); the checkpoint is incomplete")
    return sorted(blocks.items())


def _width(shapes: Mapping[str, tuple[int, ...]], at: int, part: str) -> int:
    """Returns the output channels of `part` in stage `at`, by the first block that has it."""
    width = _first(shapes, rf"network\.{at}\.\d+\.{re.escape(part)}")
    if width is None:
        raise TensorError(f"no block of vision_encoder.network.{at} has {part}, which states the stage's size")
    return width


def _features(tensors: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns the tower's output channels: by its last convolution, its squeeze-excite, or what the projector takes."""
    found = _first(shapes, r"conv_exp\.(reparam_conv|se\.expand)\.(weight|bias)")
    projector = tensors.get("projector.0.weight")
    if found is None and projector is not None and len(projector.shape) == 2:
        found = projector.shape[1]
    if found is None:
        raise TensorError(
            "neither vision_encoder.conv_exp nor projector.0.weight is there; the checkpoint is incomplete"
        )
    return found


def _first(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int | None:
    """Returns the first axis of the first tensor whose name matches, None where there is none."""
    matcher = re.compile(pattern)
    return next((shape[0] for name, shape in shapes.items() if shape and matcher.fullmatch(name)), None)
