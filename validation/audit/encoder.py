"""The vision encoder's function, op by op from the reference's modules: FastViTHD and the projector on (1, C, h, w).

An encoder for Apple's sample app (`validation.encoder_form`) ends behind the tower, and is float32 at both ends.

Geometry, heads, eps and GELU are read off the modules of `fastvlm_ref`; the declared graph (`export.encoder`) says
which exponents tensors are stored with and whether a layer scale stayed an op of its own.
Weights are asked for by name; their numbers are `validation.audit.weights`'. It knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from torch import nn

from export.encoder import EncoderGraph, Scaled
from export.folding import PowerConv
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.convffn import ConvFFN
from fastvlm_ref.model.fastvithd import LargeKernelConv, PatchEmbed
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.mobileone import MobileOneBlock, SEBlock
from fastvlm_ref.model.repmixer import RepMixer, RepMixerBlock
from validation.audit.expected import Parameter, Shape
from validation.audit.findings import CONSTANTS
from validation.audit.forms import channel_norm, gelu, mean_of_maps, sigmoid, softmax
from validation.audit.walk import Walk
from validation.encoder_form import EncoderForm
from validation.program.contents import Value

BYTES = 255.0  # a pixel of the reference is a byte over 255 (`fastvlm_ref.image.pixels_to_tensor`)
RGB = 20  # Core ML's colour space
POINTWISE = nn.Linear(1, 1, device="meta")  # any linear layer


@dataclass(frozen=True)
class Map:
    """A feature map (1, C, side, side) of the program, stored as x · 2^−exponent; value: None where it is lost."""

    value: Value | None
    side: int
    exponent: int = 0


class EncoderWalk:
    """The walk through the function of one side; `graph` has all declared folds."""

    def __init__(
        self, walk: Walk, model: FastVLM, graph: EncoderGraph, form: EncoderForm, side: int, safe: bool
    ) -> None:
        self.walk, self.model, self.graph, self.form, self.side, self.safe = walk, model, graph, form, side, safe

    def run(self) -> None:
        """Walks from the picture to the image tokens."""
        walk, tower = self.walk, self.model.vision_encoder
        x = self._picture() if self.form.picture else self._pixels()
        for index, part in enumerate(tower.patch_embed):
            x = self._mobile_one(f"patch_embed.{index}", cast(MobileOneBlock, part), x)
        for index, module in enumerate(tower.network):
            x = self._part(f"network.{index}", module, x)
        x = self._mobile_one("conv_exp", tower.conv_exp, x)
        if self.form.projected:
            x = self._projected(x)
        elif x.exponent:  # the app takes what the tower gives
            x = Map(walk.op("mul", x=x.value, y=2.0**x.exponent), x.side)
        flat = walk.op("reshape", x=x.value, shape=Shape((1, self.form.width(self.model), x.side**2)))
        tokens = walk.op("transpose", x=flat, perm=[0, 2, 1])
        if not self.form.picture:
            tokens = walk.op("cast", x=tokens, dtype="fp32")
        walk.gives(tokens, self.form.gives)

    def _projected(self, x: Map) -> Map:
        first, activation, second = self.model.projector
        x = self._gelu(self._conv("projector_0", first, x), activation)
        return self._conv("projector_2", second, x)

    def _pixels(self) -> Map:
        """Pixels in [0, 1] as the reference takes them."""
        return Map(self.walk.op("cast", x=self.walk.input(self.form.takes), dtype="fp16"), self.side)

    def _picture(self) -> Map:
        """The picture, bytes to [0, 1]: colours in RGB, nothing added."""
        image = self.walk.input(self.form.takes)
        feature = self.walk.function.features.get(self.form.takes)
        found = feature.image if feature is not None else None
        shown = (found.width, found.height, found.color) if found else None
        wanted = (self.side, self.side, RGB)
        self.walk.findings.look(CONSTANTS)
        if shown != wanted:
            what = f"the image input has width, height and colour space {shown}, expected {wanted} (20 is RGB)"
            self.walk.findings.count(CONSTANTS, f"{self.walk.title}: {what}")
        scaled = self.walk.op("mul", x=image, y=np.float32(1 / BYTES))
        return Map(self.walk.op("cast", x=scaled, dtype="fp16"), self.side)

    def _part(self, path: str, part: nn.Module, x: Map) -> Map:
        """A stage, or what stands between two of them."""
        if isinstance(part, PatchEmbed):
            large = cast(LargeKernelConv, part.proj[0])
            x = self._gelu(self._conv(f"{path}.0", large.lkb_reparam, x), large.activation)
            return self._mobile_one(f"{path}.2", cast(MobileOneBlock, part.proj[1]), x)
        if isinstance(part, RepMixer):
            return self._conv(path, part.reparam_conv, x)
        for index, block in enumerate(cast(nn.Sequential, part)):
            if isinstance(block, RepMixerBlock):
                x = self._conv(f"{path}.{index}.token_mixer", block.token_mixer.reparam_conv, x)
            else:
                x = self._attention(f"{path}.{index}.token_mixer", cast(AttentionBlock, block), x)
            x = self._ffn(f"{path}.{index}.convffn", cast(ConvFFN, block.convffn), x)
        return x

    def _mobile_one(self, path: str, block: MobileOneBlock, x: Map) -> Map:
        x = self._conv(f"{path}.conv", block.reparam_conv, x)
        if isinstance(block.se, SEBlock):
            x = self._squeeze_excite(f"{path}.se", block.se, x)
        return self._gelu(x, block.activation)

    def _squeeze_excite(self, path: str, block: SEBlock, x: Map) -> Map:
        self.walk.place = path
        mean, power = mean_of_maps(self.walk, x.value, self.safe)
        squeezed = self._conv(f"{path}.reduce", block.reduce, Map(mean, 1, x.exponent + power))
        relu = replace(squeezed, value=self.walk.op("relu", x=squeezed.value))
        gate = self._conv(f"{path}.expand", block.expand, relu)
        return replace(x, value=self.walk.op("mul", x=x.value, y=sigmoid(self.walk, gate.value, gate.exponent)))

    def _ffn(self, path: str, ffn: ConvFFN, x: Map) -> Map:
        mixed = self._conv(f"{path}.conv", cast(nn.Conv2d, ffn.conv.conv), x)
        wide = self._gelu(self._conv(f"{path}.fc1", ffn.fc1, mixed), ffn.act)
        return self._added(x, self._scaled(f"{path}.fc2", ffn.fc2, wide))

    def _attention(self, path: str, block: AttentionBlock, x: Map) -> Map:
        walk, mixer = self.walk, block.token_mixer
        walk.place = f"{path}, its norm"
        channels, pixels = block.norm.weight.numel(), x.side**2
        normed = channel_norm(walk, x.value, block.norm.eps, channels, x.exponent, self.safe)
        heads = Shape((1, mixer.heads, mixer.head_dim, pixels))
        found = [self._conv(f"{path}.{part}", POINTWISE, Map(normed, x.side)) for part in "qkv"]
        q, k, v = (walk.op("reshape", x=each.value, shape=heads) for each in found)
        scores = walk.op("matmul", x=q, y=k, transpose_x=True, transpose_y=False)
        weights = softmax(walk, scores, found[0].exponent + found[1].exponent)
        mixed = walk.op("matmul", x=v, y=weights, transpose_x=False, transpose_y=True)
        joined = walk.op("reshape", x=mixed, shape=Shape((1, channels, x.side, x.side)))
        return self._added(x, self._scaled(f"{path}.proj", mixer.proj, Map(joined, x.side, found[2].exponent)))

    def _scaled(self, path: str, module: nn.Module, x: Map) -> Map:
        """A convolution with the layer scale behind it, which is an op of its own where it could not be folded."""
        x = self._conv(f"{path}.conv", module, x)
        if cast(Scaled, self.graph.get_submodule(path)).scale is None:
            return x
        return replace(x, value=self.walk.op("mul", x=x.value, y=Parameter(f"{path}.scale")))

    def _added(self, stream: Map, branch: Map) -> Map:
        return replace(stream, value=self.walk.op("add", x=stream.value, y=branch.value))

    def _gelu(self, x: Map, module: nn.Module) -> Map:
        return replace(x, value=gelu(self.walk, x.value, x.exponent, module))

    def _conv(self, path: str, module: nn.Module, x: Map) -> Map:
        """The op of a convolution or linear layer of the reference, with the powers of two around it."""
        self.walk.place = path
        declared = self.graph.get_submodule(path)
        value, after, exponent = x.value, 1.0, x.exponent
        if isinstance(declared, PowerConv):
            if declared.before != 1:
                value = self.walk.op("mul", x=value, y=declared.before)
            after, exponent = declared.after, declared.writes
        weight, bias = Parameter(f"{path}.weight"), Parameter(f"{path}.bias")
        value = self.walk.op("conv", x=value, weight=weight, bias=bias, **geometry(module))
        if after != 1:
            value = self.walk.op("mul", x=value, y=after)
        return Map(value, x.side // _stride(module), exponent)


def geometry(module: nn.Module) -> dict[str, Any]:
    """Returns the constants of the `conv` op of a convolution; a linear layer is one of 1×1."""
    conv = module if isinstance(module, nn.Conv2d) else nn.Conv2d(1, 1, 1, device="meta")
    pads = [pad for pad in cast(tuple[int, int], conv.padding) for _ in range(2)]  # before and after, by axis
    return {
        "pad_type": "custom" if any(pads) else "valid", "pad": pads, "strides": list(conv.stride),
        "dilations": list(conv.dilation), "groups": conv.groups,
    }  # fmt: skip


def _stride(module: nn.Module) -> int:
    return cast(tuple[int, int], module.stride)[0] if isinstance(module, nn.Conv2d) else 1
