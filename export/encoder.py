"""FastViTHD and projector as the graph that ships: same numbers, fewer and friendlier ops.

What differs from the reference, all of it exact in real numbers:
- batch norm goes into the 7×7 convolution before it, layer scales into the convolution before them, the norm's gain and
  bias and 1/√D into the qkv projection (computed in float64, rounded once);
- attention and projector are 1×1 convolutions on (1, C, h, w), heads are split by `reshape` on the channel axis, so the
  whole network has a single transpose, at its end, and no rank above 4;
- squeeze-excite pools with reduce_mean (a 16×16 pooling kernel leaves the Neural Engine; pools wider than 13 do);
- where a range asks for it a tensor is stored as x · 2^−e, by exact powers of two in the weights around it
  (`export.encoder_sites`, `export.protection`); norms and pooling have forms that no input overflows.
The graph holds no image size: traced once at a small side, it is converted at each side that is asked for.
A layer scale is folded only where fp16 still holds the folded weights (`folds`): 1e-5 times a weight is subnormal.
It knows nothing of Core ML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from export.encoder_sites import UNSCALED, Place, Site, Sites
from export.folding import ROWS, fold_batch_norm, folded, folds, make_conv, pointwise, rescaled
from export.nonlinear import Gelu, gelu, sigmoid, softmax
from export.norms import ChannelNorm, SafeChannelNorm
from export.pooling import POOL_POWER, safe_mean
from export.protection import PROTECTED, Protection
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.convffn import ConvFFN
from fastvlm_ref.model.fastvithd import LargeKernelConv, PatchEmbed
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.mobileone import MobileOneBlock, SEBlock
from fastvlm_ref.model.repmixer import RepMixer, RepMixerBlock

CONV, SCORES = "convolution", "matmul"  # as a scan calls the ops


class Scaled(nn.Module):
    """A convolution and the layer scale behind it: one op where the scale folds, two where fp16 would lose it.

    Two ops are two sites: what the convolution gives is larger than what goes into the stream.
    """

    def __init__(self, conv: nn.Conv2d, scale: Tensor, at: Place, reads: Site, stream: Site) -> None:
        super().__init__()
        gain = scale.double().reshape(-1)
        weight = folded(conv.weight, gain[:, None, None, None])
        self.scale: nn.Parameter | None = None
        if folds(weight):
            assert conv.bias is not None
            scaled = make_conv(conv, weight, conv.bias.double() * gain)
            self.conv = rescaled(scaled, reads.exponent, stream.exponent)
            stream.holds(f"{at.path}.conv", CONV)
        else:
            # never finer than the stream: the scale, small as it is, must not become smaller
            exponent = max(at.sites.add(at.path).holds(f"{at.path}.conv", CONV).exponent, stream.exponent)
            self.conv = rescaled(conv, reads.exponent, exponent)
            gain = scale.reshape(1, -1, 1, 1) * 2.0 ** (exponent - stream.exponent)
            self.scale = nn.Parameter(gain, requires_grad=False)
            stream.holds(at.path, "mul")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out if self.scale is None else out * self.scale


class FFNGraph(nn.Module):
    """layer_scale · fc2(gelu(fc1(depthwise 7×7(x))))."""

    def __init__(self, ffn: ConvFFN, scale: Tensor, at: Place, stream: Site) -> None:
        super().__init__()
        mixed, wide = (at / "conv").site(CONV), (at / "fc1").site(CONV)
        depthwise = fold_batch_norm(cast(nn.Conv2d, ffn.conv.conv), cast(nn.BatchNorm2d, ffn.conv.bn))
        self.conv = rescaled(depthwise, stream.exponent, mixed.exponent)
        self.fc1 = rescaled(ffn.fc1, mixed.exponent, wide.exponent)
        self.fc2 = Scaled(ffn.fc2, scale, at / "fc2", wide, stream)
        self.exponent = wide.exponent

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(gelu(self.fc1(self.conv(x)), self.exponent))
        return out


class RepMixerGraph(nn.Module):
    """x = mixer(x); x += ffn(x). The mixer takes x from the units of what comes before into those of the stream."""

    def __init__(self, block: RepMixerBlock, at: Place, reads: Site, stream: Site) -> None:
        super().__init__()
        self.token_mixer = rescaled(block.token_mixer.reparam_conv, reads.exponent, stream.exponent)
        self.convffn = FFNGraph(block.convffn, block.layer_scale, at / "convffn", stream)
        stream.holds(f"{at.path}.token_mixer", CONV).holds(at.path, "add")

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        out: Tensor = x + self.convffn(x)
        return out


class AttentionGraph(nn.Module):
    """layer_scale_1 · proj(attention(norm(x))) on (1, C, h, w), channels first throughout."""

    def __init__(self, block: AttentionBlock, at: Place, stream: Site) -> None:
        super().__init__()
        mixer, norm = block.token_mixer, block.norm
        self.heads, self.head_dim = mixer.heads, mixer.head_dim
        form = SafeChannelNorm if at.safe_forms else ChannelNorm
        self.norm: nn.Module = form(norm.eps, norm.weight.numel(), stream.exponent)
        sites = q, k, v = [(at / part).site(CONV) for part in "qkv"]
        q.holds(at.path, SCORES)
        self.scores = q.exponent + k.exponent
        self.q, self.k, self.v = (
            rescaled(conv, 0, site.exponent) for conv, site in zip(self._projections(block), sites, strict=True)
        )
        proj = pointwise(mixer.proj.weight, mixer.proj.bias)
        self.proj = Scaled(proj, block.layer_scale_1, at / "proj", v, stream)

    def _projections(self, block: AttentionBlock) -> list[nn.Conv2d]:
        """Queries, keys and values of a normed x, with the norm's gain and bias, queries with 1/√D."""
        norm, root = block.norm, self.head_dim**-0.5
        parts = block.token_mixer.qkv.weight.chunk(3)  # each (C, C), its rows head by head
        found: list[nn.Conv2d] = []
        for part, scale in zip(parts, (root, 1.0, 1.0), strict=True):
            bias = torch.cat([rows.double() @ norm.bias.double() for rows in part.split(ROWS)]) * scale
            found.append(pointwise(folded(part, norm.weight.double() * scale), bias))
        return found

    def split(self, x: Tensor) -> Tensor:  # (1, C, h, w) -> (1, heads, D, P), P = h·w
        return x.reshape(1, self.heads, self.head_dim, -1)

    def forward(self, x: Tensor) -> Tensor:
        """x (1, C, h, w) -> the same shape."""
        shape = x.shape
        x = self.norm(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = softmax(torch.matmul(q.transpose(2, 3), k), self.scores)  # (1, heads, P, P), a row per query
        mixed = torch.matmul(v, weights.transpose(2, 3))  # (1, heads, D, P)
        out: Tensor = self.proj(mixed.reshape(shape))
        return out


class AttentionBlockGraph(nn.Module):
    """x += attention(x); x += ffn(x)."""

    def __init__(self, block: AttentionBlock, at: Place, stream: Site) -> None:
        super().__init__()
        self.token_mixer = AttentionGraph(block, at / "token_mixer", stream)
        self.convffn = FFNGraph(block.convffn, block.layer_scale_2, at / "convffn", stream)
        stream.holds(at.path, "add", "add.2")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(x)
        out: Tensor = x + self.convffn(x)
        return out


class SEGraph(nn.Module):
    """x · σ(expand(relu(reduce(mean(x)))))."""

    def __init__(self, block: SEBlock, at: Place, reads: Site) -> None:
        super().__init__()
        squeezed, gate = (at / "reduce").site(CONV), (at / "expand").site(CONV)
        self.safe, self.exponent = at.safe_forms, gate.exponent
        pooled = reads.exponent + (POOL_POWER if self.safe else 0)
        self.reduce = rescaled(block.reduce, pooled, squeezed.exponent)
        self.expand = rescaled(block.expand, squeezed.exponent, gate.exponent)

    def forward(self, x: Tensor) -> Tensor:
        pooled = safe_mean(x) if self.safe else x.mean((2, 3), keepdim=True)
        return x * sigmoid(self.expand(torch.relu(self.reduce(pooled))), self.exponent)


class ConvGraph(nn.Module):
    """A MobileOne block: convolution, perhaps squeeze-excite, exact GELU."""

    def __init__(self, block: MobileOneBlock, at: Place, reads: Site) -> None:
        super().__init__()
        self.site = at.sites.add(at.path).holds(f"{at.path}.conv", CONV)
        self.conv = rescaled(block.reparam_conv, reads.exponent, self.site.exponent)
        self.se = SEGraph(block.se, at / "se", self.site) if isinstance(block.se, SEBlock) else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return gelu(x if self.se is None else self.se(x), self.site.exponent)


def embedding(part: PatchEmbed, at: Place, reads: Site) -> tuple[nn.Module, Site]:
    """Returns the graph form of a down-sampling, and the site that it writes."""
    large, small = cast(LargeKernelConv, part.proj[0]), cast(MobileOneBlock, part.proj[1])
    site = (at / 0).site(CONV)
    conv = rescaled(large.lkb_reparam, reads.exponent, site.exponent)
    last = ConvGraph(small, at / 2, site)
    return nn.Sequential(conv, Gelu(site.exponent), last), last.site


def position_encoding(part: RepMixer, at: Place, reads: Site) -> tuple[nn.Module, Site]:
    """Returns the convolution of a RepCPE, and its site: the stream of the attention stage that follows."""
    site = at.site(CONV)
    return rescaled(part.reparam_conv, reads.exponent, site.exponent), site


def sequence(part: nn.Sequential, at: Place, reads: Site) -> tuple[nn.Module, Site]:
    """Returns the graph form of the stem or of a stage, and the site that it writes.

    An attention stage only adds to the stream that it is given; a RepMixer stage has one of its own.
    """
    stream = at.site() if isinstance(part[0], RepMixerBlock) else reads
    blocks: list[nn.Module] = []
    for index, block in enumerate(part):
        if isinstance(block, RepMixerBlock):
            blocks.append(RepMixerGraph(block, at / index, reads, stream))
            reads = stream
        elif isinstance(block, AttentionBlock):
            blocks.append(AttentionBlockGraph(block, at / index, stream))
        else:
            convolution = ConvGraph(cast(MobileOneBlock, block), at / index, reads)
            blocks.append(convolution)
            reads = convolution.site
    return nn.Sequential(*blocks), reads


def graph_of(part: nn.Module, at: Place, reads: Site) -> tuple[nn.Module, Site]:
    """Returns the graph form of one part of FastViTHD, and the site that it writes."""
    if isinstance(part, nn.Sequential):
        return sequence(part, at, reads)
    if isinstance(part, PatchEmbed):
        return embedding(part, at, reads)
    if isinstance(part, RepMixer):  # RepCPE
        return position_encoding(part, at, reads)
    raise TypeError(f"no graph form for {type(part).__name__}")


class EncoderGraph(nn.Module):
    """Pixels (1, 3, N, N) in [0, 1] -> image tokens (1, T, H), projected; neither is scaled.

    Without `projector` the tokens are the tower's own, (1, T, features), not scaled either.
    sites: what `protection.encoder` may scale, by name, with the names of the tensors whose ranges decide it.
    UsageError where it scales anything else.
    """

    def __init__(self, model: FastVLM, protection: Protection = PROTECTED, projector: bool = True) -> None:
        super().__init__()
        tower, root = model.vision_encoder, Place("", Sites(protection.encoder), protection.safe_forms)
        self.patch_embed, site = graph_of(tower.patch_embed, root / "patch_embed", UNSCALED)
        self.network = nn.ModuleList()
        for index, part in enumerate(tower.network):
            module, site = graph_of(part, root / "network" / index, site)
            self.network.append(module)
        self.conv_exp = ConvGraph(tower.conv_exp, root / "conv_exp", site)
        self.exponent = self.conv_exp.site.exponent
        self.projects = projector
        if projector:
            self._add_projector(model.projector, root / "projector_0")
        self.sites: Mapping[str, tuple[str, ...]] = root.sites.finish()

    def _add_projector(self, projector: nn.Sequential, middle: Place) -> None:
        first, _, second = (cast(nn.Linear, part) for part in projector)
        reads, self.exponent = self.exponent, middle.site(CONV).exponent
        self.projector_0 = rescaled(pointwise(first.weight, first.bias), reads, self.exponent)
        self.projector_2 = rescaled(pointwise(second.weight, second.bias), self.exponent, 0)

    def forward(self, image: Tensor) -> Tensor:
        """image (1, 3, N, N) -> image tokens (1, T, H), or features (1, 3072, N/64, N/64) where it does not project."""
        x = self.patch_embed(image)
        for part in self.network:
            x = part(x)
        x = self.conv_exp(x)  # (1, 3072, N/64, N/64)
        if self.projects:
            x = self.projector_2(gelu(self.projector_0(x), self.exponent))  # (1, H, N/64, N/64)
        elif self.exponent:
            x = x * 2.0**self.exponent
        out: Tensor = x.flatten(2).transpose(1, 2)  # (1, T, H)
        return out
