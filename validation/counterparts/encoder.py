"""FastViTHD and projector: the convolutions of `export.encoder.EncoderGraph`, and the blocks that they make up.

| parameter of the graph | module of the reference | besides |
|---|---|---|
| `patch_embed.0.conv`, `conv_exp.conv` | `….reparam_conv` | |
| `network.0.0.token_mixer`, `network.7` | `….reparam_conv` | |
| `network.1.0`, `network.1.2.conv` | `….proj.0.lkb_reparam`, `….proj.1.reparam_conv` | |
| `….convffn.conv` | `….convffn.conv` with its batch norm | |
| `….convffn.fc2.conv`, `….proj.conv` | `….fc2`, `….proj` | times the layer scale where it is folded |
| `….token_mixer.q`, `.k`, `.v` | thirds of `….token_mixer.qkv` | q divided by √D; norm's gain and bias in the weights |
| `projector_0`, `projector_2` | `projector.0`, `projector.2` | |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from math import isqrt

import torch
from torch import Tensor, nn

from export.encoder import EncoderGraph, Scaled
from export.folding import PowerConv
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.repmixer import RepMixerBlock
from validation.counterparts.counterpart import Block, Change, Counterpart
from validation.program.anchors import Anchors

TOWER = "vision_encoder."


def encoder_counterparts(model: FastVLM, graph: EncoderGraph) -> Iterator[Counterpart]:
    """Gives the counterpart of every convolution of the graph, in the order in which they run."""
    for path, conv in graph.named_modules():
        if isinstance(conv, nn.Conv2d):
            takes, gives = _exponents(conv)
            module, change = _module(model, graph, path)
            block = encoder_block(path)
            yield Counterpart(path, block, module, takes, gives, partial(_scaled, change, 2.0**-gives))


def encoder_block(path: str) -> str:
    """Returns the block of a module of the graph: `vision_encoder.network.0.1`, `vision_encoder.patch_embed.2`."""
    if path.startswith("projector"):
        return "projector"
    found = re.match(r"network\.\d+(\.\d+(?=\.(token_mixer|convffn)))?|patch_embed\.\d+|conv_exp", path)
    return TOWER + (found[0] if found else path)


def encoder_blocks(model: FastVLM, graph: EncoderGraph, anchors: Anchors) -> Iterator[Block]:
    """Gives every block of the tower and the projector, in order; Unmatched where the program lacks one.

    Without a projector what the last block gives is the function's own result.
    """
    convs = [path for path, module in graph.named_modules() if isinstance(module, nn.Conv2d)]
    behind = dict(pairwise(convs))
    names = list(dict.fromkeys(map(encoder_block, convs)))
    for name in names:
        own = [path for path in convs if encoder_block(path) == name]
        if isinstance(model.get_submodule(name), (RepMixerBlock, AttentionBlock)):
            value = anchors.added(own[-1]).name
            exponent = _exponents(graph.get_submodule(f"{name.removeprefix(TOWER)}.convffn.conv"), "reads")[0]
        elif name == "projector" or own == [name.removeprefix(TOWER)]:  # RepCPE: a convolution alone
            value, exponent = anchors.given(own[-1]).name, _exponents(graph.get_submodule(own[-1]))[1]
        elif own[-1] not in behind:
            yield Block(name, anchors.function.results[0].name, _tokens)
            continue
        else:  # what follows the last convolution (GELU, squeeze-excite) is what the next one takes
            following = behind[own[-1]]
            value, exponent = anchors.taken(following).name, _exponents(graph.get_submodule(following))[0]
        yield Block(name, value, partial(_scaled, _maps, 2.0**-exponent))


def _exponents(conv: nn.Module, takes: str = "takes", gives: str = "gives") -> tuple[int, int]:
    """The exponents of a convolution's input and result; 0 for one that is the reference's own."""
    return (getattr(conv, takes), getattr(conv, gives)) if isinstance(conv, PowerConv) else (0, 0)


def _module(model: FastVLM, graph: EncoderGraph, path: str) -> tuple[str, Change]:
    """The reference's module of a convolution, and what its result has to become."""
    if path.startswith("projector_"):
        return path.replace("_", "."), _maps
    if path.endswith(".se.reduce") or path.endswith(".se.expand"):
        return TOWER + path, _maps
    own, _, leaf = path.rpartition(".")
    if leaf in ("q", "k", "v"):
        part, heads = "qkv".index(leaf), model.config.vision.head_dim
        return f"{TOWER}{own}.qkv", partial(_third, part, heads**-0.5 if leaf == "q" else 1.0)
    if leaf in ("fc1",) or path.endswith("convffn.conv"):
        return TOWER + path, _maps
    scaled = graph.get_submodule(own) if leaf == "conv" else None
    if isinstance(scaled, Scaled):
        return TOWER + own, partial(_times, _layer_scale(model, own) if scaled.scale is None else None)
    downsampling = re.fullmatch(r"(network\.\d+)\.(0|2\.conv)", path)
    if downsampling:
        last = "proj.0.lkb_reparam" if downsampling[2] == "0" else "proj.1.reparam_conv"
        return f"{TOWER}{downsampling[1]}.{last}", _maps
    return f"{TOWER}{path.removesuffix('.conv')}.reparam_conv", _maps


def _layer_scale(model: FastVLM, path: str) -> Tensor:
    """The layer scale behind `network.9.0.convffn.fc2` or `….token_mixer.proj`: (C, 1, 1) of the reference's block."""
    block = model.vision_encoder.get_submodule(path.rpartition(".")[0].rpartition(".")[0])
    if isinstance(block, AttentionBlock):
        return block.layer_scale_1 if path.endswith("proj") else block.layer_scale_2
    assert isinstance(block, RepMixerBlock)
    return block.layer_scale


def _maps(x: Tensor) -> Tensor:
    """Tokens (1, P, C) as (1, C, h, w), h = w = √P; maps as they are."""
    if x.ndim == 4:
        return x
    side = isqrt(x.shape[1])
    return x.transpose(1, 2).reshape(1, -1, side, side)


def _tokens(x: Tensor) -> Tensor:
    """Maps (1, C, h, w) as tokens (1, P, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def _third(part: int, factor: float, x: Tensor) -> Tensor:
    return _maps(x.chunk(3, -1)[part]) * factor


def _times(scale: Tensor | None, x: Tensor) -> Tensor:
    return _maps(x) if scale is None else _maps(x) * scale.reshape(1, -1, 1, 1)


def _scaled(change: Change, factor: float, x: Tensor) -> Tensor:
    changed = change(x)
    return changed if factor == 1 else torch.mul(changed, factor)
