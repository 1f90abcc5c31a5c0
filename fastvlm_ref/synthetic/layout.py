"""Every tensor of a checkpoint: its stored name, its name under the rule of the weights, its shape and dtype.

Notable choices: the LLaVA layout is written out once, in the order of Apple's modules; the Hugging Face one is its
translation, so both hold the same values. What `fastvlm_ref.checkpoint.layouts` reads is not used here: one checks the
other. Source: names and shapes of the official checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from fastvlm_ref.config import TextConfig, VisionConfig
from fastvlm_ref.synthetic.sizes import Size

TOWER = "model.vision_tower.vision_tower.model."
TIMM = "model.vision_tower.timm_model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CLIP_WIDTH = 768  # of the tower's unused CLIP head
NORM = ("weight", "bias", "running_mean", "running_var")
BYTES = {"BF16": 2, "I64": 8}
Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: where it lies (`stored`), what it is drawn as (`rule`, a LLaVA name), and its shape."""

    stored: str
    rule: str
    shape: Shape

    @property
    def dtype(self) -> str:
        """BF16, or I64 for the counters of batch norms."""
        return "I64" if self.rule.endswith("num_batches_tracked") else "BF16"

    @property
    def bytes(self) -> int:
        """What its values take in the file."""
        return math.prod(self.shape) * BYTES[self.dtype]


def tensors(size: Size, layout: str) -> list[Tensor]:
    """Returns all tensors of `size` in `layout`, "llava" or "hf", in the order in which the layout's modules stand."""
    tied = size.text.tied_head
    found = []
    for name, shape in _llava(size, size.rows(layout)):
        rule = EMBEDDING if name == HEAD and tied else name
        if layout == "llava":
            found.append(Tensor(name, rule, shape))
        elif not (name == HEAD and tied) and not name.endswith(".head.proj"):
            found.append(Tensor(_hugging_face(name, size.vision), rule, shape))
    return found


def _llava(size: Size, rows: int) -> Named:
    hidden = size.text.hidden_size
    yield EMBEDDING, (rows, hidden)
    for index in range(size.text.layers):
        yield from _within(f"model.layers.{index}.", _layer(size.text))
    yield "model.norm.weight", (hidden,)
    yield from _within(TOWER, _tower(size.vision))
    yield from _linear("model.mm_projector.0", hidden, size.vision.features)
    yield from _linear("model.mm_projector.2", hidden, hidden)
    yield HEAD, (rows, hidden)


def _within(prefix: str, named: Named) -> Named:
    for name, shape in named:
        yield prefix + name, shape


def _linear(name: str, *shape: int, bias: bool = True) -> Named:
    """A linear layer (outputs, inputs) or a convolution (outputs, inputs per group, k, k)."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _layer(text: TextConfig) -> Named:
    hidden, wide, queries = text.hidden_size, text.intermediate_size, text.heads * text.head_dim
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    for name, width in (("q", queries), ("k", text.kv_width), ("v", text.kv_width)):
        yield from _linear(f"self_attn.{name}_proj", width, hidden, bias=text.qkv_bias)
    yield "self_attn.o_proj.weight", (hidden, queries)
    yield "mlp.gate_proj.weight", (wide, hidden)
    yield "mlp.up_proj.weight", (wide, hidden)
    yield "mlp.down_proj.weight", (hidden, wide)


def _tower(vision: VisionConfig) -> Named:
    first, last, features = vision.widths[0], vision.widths[-1], vision.features
    yield from _linear("patch_embed.0.reparam_conv", first, 3, 3, 3)
    yield from _linear("patch_embed.1.reparam_conv", first, 1, 3, 3)
    yield from _linear("patch_embed.2.reparam_conv", first, first, 1, 1)
    for index, (stage, part) in enumerate(_places(vision)):
        yield from _within(f"network.{index}.", _part(vision, stage, part))
    yield from _linear("conv_exp.se.reduce", vision.se_channels, features, 1, 1)
    yield from _linear("conv_exp.se.expand", features, vision.se_channels, 1, 1)
    yield from _linear("conv_exp.reparam_conv", features, 1, 3, 3)
    yield "head.proj", (features, CLIP_WIDTH)
    assert features % last == 0  # conv_exp is depthwise


def _places(vision: VisionConfig) -> list[tuple[int, str]]:
    """Returns (stage, part in timm's words) for each place in `network`."""
    found = []
    for stage, attends in enumerate(vision.attention_stages):
        found += [(stage, "downsample")] if stage else []
        found += [(stage, "pos_emb")] if attends else []
        found.append((stage, "blocks"))
    return found


def _part(vision: VisionConfig, stage: int, part: str) -> Named:
    width = vision.widths[stage]
    if part == "downsample":
        yield from _linear("proj.0.lkb_reparam", width, 1, 7, 7)
        yield from _linear("proj.1.reparam_conv", width, width, 1, 1)
    elif part == "pos_emb":
        yield from _linear("reparam_conv", width, 1, 7, 7)
    else:
        block = _attention_block if vision.attention_stages[stage] else _mixer_block
        for index in range(vision.depths[stage]):
            yield from _within(f"{index}.", block(width, vision.mlp_widths[stage]))


def _mixer_block(width: int, wide: int) -> Named:
    yield "layer_scale", (width, 1, 1)
    yield from _linear("token_mixer.reparam_conv", width, 1, 3, 3)
    yield from _feed_forward(width, wide)


def _attention_block(width: int, wide: int) -> Named:
    yield "layer_scale_1", (width, 1, 1)
    yield "layer_scale_2", (width, 1, 1)
    yield from _linear("norm", width)
    yield from _linear("token_mixer.qkv", 3 * width, width, bias=False)
    yield from _linear("token_mixer.proj", width, width)
    yield from _feed_forward(width, wide)


def _feed_forward(width: int, wide: int) -> Named:
    yield "convffn.conv.conv.weight", (width, 1, 7, 7)
    for part in NORM:
        yield f"convffn.conv.bn.{part}", (width,)
    yield "convffn.conv.bn.num_batches_tracked", ()
    yield from _linear("convffn.fc1", wide, width, 1, 1)
    yield from _linear("convffn.fc2", width, wide, 1, 1)


def _hugging_face(name: str, vision: VisionConfig) -> str:
    """Returns the name of transformers' `fast_vlm`, whose tower is timm's, for a LLaVA name."""
    if name.startswith(TOWER):
        return TIMM + _timm(name.removeprefix(TOWER), vision)
    for llava, theirs in (
        ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
        ("model.", "model.language_model."),
    ):
        if name.startswith(llava):
            return theirs + name.removeprefix(llava)
    return name  # the head


def _timm(name: str, vision: VisionConfig) -> str:
    places = [f"stages.{stage}.{part}" for stage, part in _places(vision)]
    name = re.sub(r"^network\.(\d+)", lambda found: places[int(found[1])], name)
    name = re.sub(r"(layer_scale(?:_[12])?)$", r"\1.gamma", name)
    for apple, timm in (
        ("patch_embed.", "stem."), ("conv_exp.", "final_conv."), (".convffn.", ".mlp."),
        (".lkb_reparam.", ".reparam_conv."), (".se.reduce.", ".se.fc1."), (".se.expand.", ".se.fc2."),
    ):  # fmt: skip
        name = name.replace(apple, timm)
    return name
