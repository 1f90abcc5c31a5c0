"""The sizes of a vision tower, read off its tensors' names and shapes.

No table of model names: a fine-tune with other depths, widths or stages just works. Several tensors tell each size, and
most of them decide: one that is missing or misshapen is then itself reported, not its neighbours.
Two sizes leave no trace in any tensor: the heads' dim (32 in every FastViT) and the image side (config.json has it).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from fastvlm.errors import TensorError
from fastvlm_ref.checkpoint.tensors import LazyTensor
from fastvlm_ref.config import LARGEST_SIDE, VisionConfig

PREFIX = "vision_encoder."
HEAD_DIM = 32
BLOCK = re.compile(r"network\.(\d{1,4})\.(\d{1,4})\.(.+)")
LEAST_TENSORS = 8  # of a block, which has a dozen: so a number alone cannot cost memory or time
# A stage halves the grid: more of them, and the largest image has no position left.
MOST_STAGES = LARGEST_SIDE.bit_length() - 2

# What tells a size: (tensor, axis).
WIDTH = {
    ("convffn.fc2.weight", 0), ("convffn.fc2.bias", 0), ("convffn.fc1.weight", 1), ("convffn.conv.conv.weight", 0),
}  # fmt: skip
MLP_WIDTH = {("convffn.fc1.weight", 0), ("convffn.fc1.bias", 0), ("convffn.fc2.weight", 1)}
FEATURES = {
    ("conv_exp.reparam_conv.weight", 0), ("conv_exp.reparam_conv.bias", 0), ("conv_exp.se.expand.weight", 0),
    ("conv_exp.se.expand.bias", 0), ("conv_exp.se.reduce.weight", 1),
}  # fmt: skip
SE_CHANNELS = {("conv_exp.se.reduce.weight", 0), ("conv_exp.se.reduce.bias", 0), ("conv_exp.se.expand.weight", 1)}

# What tells which of the two kinds a stage's blocks are.
ATTENTION = {"token_mixer.qkv.weight", "token_mixer.proj.weight", "norm.weight", "layer_scale_1", "layer_scale_2"}
MIXER = {"token_mixer.reparam_conv.weight", "token_mixer.reparam_conv.bias", "layer_scale"}

Shapes = Mapping[str, tuple[int, ...]]
Blocks = Mapping[int, list[tuple[str, tuple[int, ...]]]]  # by place in `network`: (name inside its block, shape)


def vision_config(tensors: Mapping[str, LazyTensor], image_size: int) -> VisionConfig:
    """Returns the tower's sizes from fused tensors by our names; raises TensorError where they cannot be told."""
    shapes = {name.removeprefix(PREFIX): tensor.shape for name, tensor in tensors.items() if name.startswith(PREFIX)}
    blocks, stages = _stages(shapes)
    attention = tuple(_attends(blocks[at]) for at, _ in stages)
    config = VisionConfig(
        image_size=image_size,
        depths=tuple(depth for _, depth in stages),
        widths=tuple(_width(blocks, at, WIDTH) for at, _ in stages),
        mlp_widths=tuple(_width(blocks, at, MLP_WIDTH) for at, _ in stages),
        attention_stages=attention,
        head_dim=HEAD_DIM,
        features=_features(tensors, shapes),
        se_channels=_told(shapes.items(), SE_CHANNELS) or 0,
        stride=2 ** (len(stages) + 1),  # 4 in the stem, 2 between stages
    )
    chain = (*config.widths, config.features)
    if 0 in (*chain, *config.mlp_widths):
        raise TensorError(f"the tower's widths are {list(chain)} and {list(config.mlp_widths)}, expected none to be 0")
    if any(wide % narrow for narrow, wide in pairwise(chain)):
        raise TensorError(f"the tower's widths are {list(chain)}, expected each a multiple of the one before it")
    odd = [width for width, heads in zip(config.widths, attention, strict=True) if heads and width % HEAD_DIM]
    if odd:
        raise TensorError(f"attention stages are {odd} channels wide, expected multiples of the head dim {HEAD_DIM}")
    return config


def _stages(shapes: Shapes) -> tuple[Blocks, list[tuple[int, int]]]:
    """Returns the blocks' tensors by place, and (place in `network`, number of blocks) of each stage, in order."""
    depths: dict[int, int] = {}
    blocks: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if found := BLOCK.match(name):
            at, block = int(found[1]), int(found[2])
            depths[at] = max(depths.get(at, 0), block + 1)
            blocks.setdefault(at, []).append((found[3], shape))
    if sum(depths.values()) * LEAST_TENSORS > len(shapes):
        raise TensorError(f"the vision tower numbers {sum(depths.values())} blocks but holds {len(shapes)} tensors")
    if not depths:
        raise TensorError("the vision tower has no stages (vision_encoder.network.N.M.*); the checkpoint is incomplete")
    if len(depths) > MOST_STAGES:
        raise TensorError(f"the vision tower has {len(depths)} stages, at most {MOST_STAGES} leave a grid to look at")
    return blocks, sorted(depths.items())


def _attends(block: list[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether most of what tells the kind of a stage's blocks says attention."""
    return sum((name in ATTENTION) - (name in MIXER) for name, _ in block) > 0


def _width(blocks: Blocks, at: int, telling: set[tuple[str, int]]) -> int:
    """Returns a size of stage `at`; raises TensorError where none of its blocks tells it."""
    width = _told(blocks[at], telling)
    if width is None:
        names = " or ".join(sorted({name for name, _ in telling}))
        raise TensorError(f"no block of vision_encoder.network.{at} has {names}, which state the stage's size")
    return width


def _features(tensors: Mapping[str, LazyTensor], shapes: Shapes) -> int:
    """Returns the tower's output channels: by its last convolution, its squeeze-excite, or what the projector takes."""
    found = _told(shapes.items(), FEATURES)
    projector = tensors.get("projector.0.weight")
    if found is None and projector is not None and len(projector.shape) == 2:
        found = projector.shape[1]
    if found is None:
        raise TensorError(
            "neither vision_encoder.conv_exp nor projector.0.weight is there; the checkpoint is incomplete"
        )
    return found


def _told(named: Iterable[tuple[str, tuple[int, ...]]], telling: set[tuple[str, int]]) -> int | None:
    """Returns what most of the tensors that tell a size say, None where there are none."""
    says = Counter(
        shape[axis] for name, shape in named for axis in (0, 1) if (name, axis) in telling and axis < len(shape)
    )
    return says.most_common(1)[0][0] if says else None
