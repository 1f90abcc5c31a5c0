"""FastViTHD and projector as the graph that ships: same numbers, fewer and friendlier ops.

What differs from the reference, all of it exact in real numbers:
- batch norm goes into the 7×7 convolution before it, layer scales into the convolution before them, the norm's gain and
  bias and 1/√D into the qkv projection (computed in float64, rounded once);
- attention and projector are 1×1 convolutions on (1, C, h, w), heads are split by `reshape` on the channel axis, so the
  whole network has a single transpose, at its end, and no rank above 4;
- squeeze-excite pools with reduce_mean (a 16×16 pooling kernel leaves the Neural Engine; pools wider than 13 do).
The graph holds no image size: traced once at a small side, it is converted at each side that is asked for.
A layer scale is folded only where fp16 still holds the folded weights (`folds`): 1e-5 times a weight is subnormal.
It knows nothing of Core ML.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.norms import ChannelNorm
from fastvlm_ref.checkpoint.tensors import own_memory
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.convffn import ConvFFN
from fastvlm_ref.model.fastvithd import LargeKernelConv, PatchEmbed
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.mobileone import MobileOneBlock, SEBlock
from fastvlm_ref.model.repmixer import RepMixer, RepMixerBlock

# Below 2⁻¹⁴ fp16 is subnormal and rounds by up to 2⁻²⁵ absolute. In a channel whose largest weight is 2⁻¹⁰ that is at
# most 2⁻¹⁵ of the largest, below the 2⁻¹² by which fp16 rounds the largest itself.
SMALLEST_FOLDED = 2.0**-10
ROWS = 64  # of a weight that are folded at a time


def make_conv(like: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Returns a convolution of `like`'s geometry with a float32 `weight` and `bias` in float32."""
    channels, kernel = weight.shape[1] * like.groups, (weight.shape[2], weight.shape[3])
    with torch.device("meta"):
        conv = nn.Conv2d(
            channels, weight.shape[0], kernel, cast(tuple[int, int], like.stride), cast(tuple[int, int], like.padding),
            groups=like.groups, bias=bias is not None,
        )  # fmt: skip
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    return conv


def pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Returns a linear layer's weight (outputs, inputs) as a 1×1 convolution."""
    return make_conv(nn.Conv2d(1, 1, 1), weight[:, :, None, None], bias)


def folded(weight: Tensor, gain: Tensor) -> Tensor:
    """Returns weight · gain (broadcast) in float32, computed in float64 and rounded once.

    A few rows at a time, into pages of its own: float64 copies of whole weights would stay with malloc, 0.2 GB of them.
    """
    out = own_memory(weight.numel()).view(weight.shape)
    for into, rows, gains in zip(*(each.split(ROWS) for each in (out, weight, gain.expand_as(weight))), strict=True):
        into.copy_(rows.double() * gains.double())
    return out


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Returns one convolution that computes norm(conv(x)); conv has no bias."""
    assert norm.running_mean is not None  # only a norm without statistics has none; Apple's all have
    assert norm.running_var is not None
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * gain
    return make_conv(conv, folded(conv.weight, gain[:, None, None, None]), bias)


def folds(weight: Tensor) -> bool:
    """Whether fp16 holds a folded weight (outputs, …) as well as an unfolded one, in every output channel."""
    return bool((weight.abs().flatten(1).amax(1) >= SMALLEST_FOLDED).all())


class Scaled(nn.Module):
    """A convolution and the layer scale behind it: one op where the scale folds, two where fp16 would lose it."""

    def __init__(self, conv: nn.Conv2d, scale: Tensor) -> None:
        super().__init__()
        gain = scale.double().reshape(-1)
        weight = folded(conv.weight, gain[:, None, None, None])
        self.scale: nn.Parameter | None = None
        if folds(weight):
            assert conv.bias is not None
            self.conv = make_conv(conv, weight, conv.bias.double() * gain)
        else:
            self.conv = conv
            self.scale = nn.Parameter(scale.reshape(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out if self.scale is None else out * self.scale


class FFNGraph(nn.Module):
    """layer_scale · fc2(gelu(fc1(depthwise 7×7(x))))."""

    def __init__(self, ffn: ConvFFN, scale: Tensor) -> None:
        super().__init__()
        self.conv = fold_batch_norm(cast(nn.Conv2d, ffn.conv.conv), cast(nn.BatchNorm2d, ffn.conv.bn))
        self.fc1 = ffn.fc1
        self.fc2 = Scaled(ffn.fc2, scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.conv(x))))
        return out


class RepMixerGraph(nn.Module):
    """x = mixer(x); x += ffn(x)."""

    def __init__(self, block: RepMixerBlock) -> None:
        super().__init__()
        self.token_mixer = block.token_mixer.reparam_conv
        self.convffn = FFNGraph(block.convffn, block.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        out: Tensor = x + self.convffn(x)
        return out


class AttentionGraph(nn.Module):
    """layer_scale_1 · proj(attention(norm(x))) on (1, C, h, w), channels first throughout."""

    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        mixer, norm = block.token_mixer, block.norm
        self.heads, self.head_dim = mixer.heads, mixer.head_dim
        self.norm = ChannelNorm(norm.eps)
        root, gain = self.head_dim**-0.5, norm.weight.double()
        q, k, v = mixer.qkv.weight.chunk(3)  # each (C, C), its rows head by head
        bias = [torch.cat([rows.double() @ norm.bias.double() for rows in part.split(ROWS)]) for part in (q, k, v)]
        self.q = pointwise(folded(q, gain * root), bias[0] * root)
        self.k = pointwise(folded(k, gain), bias[1])
        self.v = pointwise(folded(v, gain), bias[2])
        self.proj = Scaled(pointwise(mixer.proj.weight, mixer.proj.bias), block.layer_scale_1)

    def split(self, x: Tensor) -> Tensor:  # (1, C, h, w) -> (1, heads, D, P), P = h·w
        return x.reshape(1, self.heads, self.head_dim, -1)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = self.norm(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weights = torch.softmax(torch.matmul(q.transpose(2, 3), k), -1)  # (1, heads, P, P), a row per query
        mixed = torch.matmul(v, weights.transpose(2, 3))  # (1, heads, D, P)
        out: Tensor = self.proj(mixed.reshape(shape))
        return out


class AttentionBlockGraph(nn.Module):
    """x += attention(x); x += ffn(x)."""

    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        self.token_mixer = AttentionGraph(block)
        self.convffn = FFNGraph(block.convffn, block.layer_scale_2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(x)
        out: Tensor = x + self.convffn(x)
        return out


class SEGraph(nn.Module):
    """x · σ(expand(relu(reduce(mean(x)))))."""

    def __init__(self, block: SEBlock) -> None:
        super().__init__()
        self.reduce, self.expand = block.reduce, block.expand

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(gate))))


class ConvGraph(nn.Module):
    """A MobileOne block: convolution, perhaps squeeze-excite, exact GELU."""

    def __init__(self, block: MobileOneBlock) -> None:
        super().__init__()
        self.conv = block.reparam_conv
        self.se = SEGraph(block.se) if isinstance(block.se, SEBlock) else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.gelu(x if self.se is None else self.se(x))


def graph_of(part: nn.Module) -> nn.Module:
    """Returns the graph form of one part of FastViTHD, child by child where it is a sequence."""
    if isinstance(part, nn.Sequential):
        return nn.Sequential(*map(graph_of, part))
    if isinstance(part, PatchEmbed):
        large, small = part.proj
        convolution = cast(LargeKernelConv, large).lkb_reparam
        return nn.Sequential(convolution, nn.GELU(), ConvGraph(cast(MobileOneBlock, small)))
    if isinstance(part, MobileOneBlock):
        return ConvGraph(part)
    if isinstance(part, RepMixerBlock):
        return RepMixerGraph(part)
    if isinstance(part, AttentionBlock):
        return AttentionBlockGraph(part)
    if isinstance(part, RepMixer):  # RepCPE
        return part.reparam_conv
    raise TypeError(f"no graph form for {type(part).__name__}")


class EncoderGraph(nn.Module):
    """Pixels (1, 3, N, N) in [0, 1] -> image tokens (1, T, H), projected."""

    def __init__(self, model: FastVLM) -> None:
        super().__init__()
        tower = model.vision_encoder
        first, _, second = (cast(nn.Linear, part) for part in model.projector)
        self.patch_embed = graph_of(tower.patch_embed)
        self.network = nn.ModuleList(map(graph_of, tower.network))
        self.conv_exp = graph_of(tower.conv_exp)
        self.projector_0 = pointwise(first.weight, first.bias)
        self.projector_2 = pointwise(second.weight, second.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        for part in self.network:
            x = part(x)
        x = self.conv_exp(x)  # (1, 3072, N/64, N/64)
        x = self.projector_2(F.gelu(self.projector_0(x)))  # (1, H, N/64, N/64)
        out: Tensor = x.flatten(2).transpose(1, 2)  # (1, T, H)
        return out
