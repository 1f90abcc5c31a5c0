"""Collapses the branches that a vision tower trains with into the single convolutions it runs with.

FastViT trains each convolution as a sum of parallel branches, each with batch norm, and is released fused. A folder
whose tower was saved while training still holds the branches; with batch norm in eval mode all of it is linear, so
the sum has one kernel and one bias:

    MobileOne   Σ rbr_conv.i + rbr_scale (1×1, padded) + rbr_skip (batch norm alone: identity kernel)
    large conv  lkb_origin + small_conv (padded)
    RepMixer    x + layer_scale · (mixer(x) − norm(x)), mixer and norm being MobileOne blocks
    RepCPE      pe(x) + x

Names are Apple's; `layouts.py` turns timm's (conv_kxk, conv_scale, identity, large_conv, pos_enc) into them first. The
arithmetic is in float64, so that fusing costs one rounding. Each fused tensor is worked out when it is read.
Source: RepVGG, arXiv 2101.03697; MobileOne, arXiv 2206.04040; FastViT, arXiv 2303.14189; RepLKNet, arXiv 2203.06717.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import islice, takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvlm_ref.checkpoint.tensors import LazyTensor, computed

NORM_EPS = 1e-5  # of every BatchNorm2d in the tower; no tensor holds it
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
MIXER = re.compile(r"(vision_encoder\..+\.token_mixer)\.(?:mixer|norm)\.(?:rbr_conv|rbr_scale|rbr_skip)\.")
MIXER_PART = re.compile(r"\.token_mixer\.(?:mixer|norm)$")
MOBILE_ONE = re.compile(r"(vision_encoder\..+)\.(?:rbr_conv|rbr_scale|rbr_skip)\.")
LARGE = re.compile(r"(vision_encoder\..+)\.(?:lkb_origin|small_conv)\.")
BRANCH = re.compile(r"(\d{1,4})\.")
POSITION = re.compile(r"(vision_encoder\..+)\.pe\.")

Shape = tuple[int, ...]


class Convolution(NamedTuple):
    """A fused convolution: its kernel's shape and a function that works out kernel and bias in float64."""

    shape: Shape
    values: Callable[[], tuple[Tensor, Tensor]]


class Fused(NamedTuple):
    """Tensors after fusing, sentences on branches that could not be fused, and the names that are absent for it."""

    tensors: dict[str, LazyTensor]
    problems: list[str]
    broken: set[str]


def fuse(tensors: Mapping[str, LazyTensor]) -> Fused:
    """Returns the tensors with every set of branches replaced by its fused kernel and bias, and what is wrong.

    The problems (missing or misshapen branch tensors) are for the one TensorError that lists all problems; branches
    beside an already fused kernel stay, to be reported as extra.
    """
    blocks = _Blocks(tensors)
    for prefix in _prefixes(tensors, MIXER):
        blocks.put(prefix, "reparam_conv", blocks.rep_mixer)
    for prefix in _prefixes(blocks.rest, MOBILE_ONE):
        if not MIXER_PART.search(prefix):
            blocks.put(prefix, "reparam_conv", blocks.mobile_one)
    for prefix in _prefixes(blocks.rest, LARGE):
        blocks.put(prefix, "lkb_reparam", blocks.large_conv)
    for prefix in _prefixes(blocks.rest, POSITION):
        blocks.put(prefix, "reparam_conv", blocks.position)
    return Fused(blocks.rest, blocks.problems, blocks.broken)


def _prefixes(tensors: Mapping[str, LazyTensor], pattern: re.Pattern[str]) -> list[str]:
    return list(dict.fromkeys(found[1] for name in tensors if (found := pattern.match(name))))


class _Blocks:
    """The tensors while branches are being taken out of them and fused ones put in."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self.rest = dict(tensors)
        self.sorted = sorted(self.rest)  # so that what a block holds is found without asking every tensor
        self.problems: list[str] = []
        self.broken: set[str] = set()
        self.mixers_scale = any(re.search(r"\.token_mixer\.layer_scale$", name) for name in tensors)

    def put(self, prefix: str, name: str, build: Callable[[str], Convolution | None]) -> None:
        """Replaces the branches under `prefix` by `prefix.name.weight` and `.bias`, where all of them are there."""
        if f"{prefix}.{name}.weight" in self.rest:
            return
        held = self.below(f"{prefix}.")
        if not held:  # names within names: what was below went with the block around it, whose problem is noted
            return
        where = self.rest[held[0]].where
        fused = build(prefix)
        if fused is None:
            self.broken |= {f"{prefix}.{name}.weight", f"{prefix}.{name}.bias"}
            return
        shape, values = fused
        self.rest[f"{prefix}.{name}.weight"] = computed(shape, where, lambda: values()[0].float())
        self.rest[f"{prefix}.{name}.bias"] = computed(shape[:1], where, lambda: values()[1].float())

    def below(self, start: str) -> list[str]:
        """Returns the names still there that begin with `start`, in order."""
        place = bisect_left(self.sorted, start)
        found = takewhile(lambda name: name.startswith(start), islice(self.sorted, place, None))
        return [name for name in found if name in self.rest]

    def take(self, name: str, shape: Shape | None = None) -> LazyTensor | None:
        """Removes and returns a branch's tensor; notes the problem and returns None where it is absent or misshapen."""
        tensor = self.rest.pop(name, None)
        if tensor is None:
            self.problems.append(f"missing {name}{'' if shape is None else f' {list(shape)}'}")
        elif shape is not None and tensor.shape != shape:
            self.problems.append(f"misshapen {name}: expected {list(shape)}, found {list(tensor.shape)}")
            return None
        return tensor

    def norm(self, prefix: str, channels: int) -> Callable[[], tuple[Tensor, Tensor]] | None:
        """Takes a batch norm; returns a function for its factor and offset per channel, in float64."""
        parts = [self.take(f"{prefix}.{part}", (channels,)) for part in NORM_PARTS]
        if any(part is None for part in parts):
            return None
        weight, bias, mean, variance = (part for part in parts if part is not None)

        def values() -> tuple[Tensor, Tensor]:
            factor = weight.read().double() / torch.sqrt(variance.read().double() + NORM_EPS)
            return factor, bias.read().double() - mean.read().double() * factor

        return values

    def conv_norm(self, prefix: str, channels: int | None = None) -> Convolution | None:
        """Takes a convolution without bias and the batch norm after it."""
        kernel = self.take(f"{prefix}.conv.weight")
        if kernel is not None and (len(kernel.shape) != 4 or channels not in (None, kernel.shape[0])):
            self.problems.append(
                f"misshapen {prefix}.conv.weight: found {list(kernel.shape)}, expected a kernel of {channels} outputs"
            )
            return None
        outputs = kernel.shape[0] if kernel is not None else channels
        norm = self.norm(f"{prefix}.bn", outputs) if outputs is not None else None
        if kernel is None or norm is None:
            return None

        def values() -> tuple[Tensor, Tensor]:
            factor, offset = norm()
            return kernel.read().double() * factor[:, None, None, None], offset

        return Convolution(kernel.shape, values)

    def skip(self, prefix: str, shape: Shape) -> Convolution | None:
        """Takes a batch norm that stands alone, as a convolution of `shape` with the identity kernel."""
        norm = self.norm(prefix, shape[0])
        if norm is None:
            return None

        def values() -> tuple[Tensor, Tensor]:
            factor, offset = norm()
            return identity(shape) * factor[:, None, None, None], offset

        return Convolution(shape, values)

    def mobile_one(self, prefix: str) -> Convolution | None:
        """Takes the branches of a MobileOne block."""
        numbers = sorted(
            {
                int(found[1])
                for name in self.below(f"{prefix}.rbr_conv.")
                if (found := BRANCH.match(name.removeprefix(f"{prefix}.rbr_conv.")))
            }
        )
        if not numbers:
            # Every block here trains with at least one k×k branch; without it even the kernel's size is unknown.
            self.problems.append(f"missing {prefix}.rbr_conv.0.conv.weight")
            self._drop(prefix)
            return None
        branches = [self.conv_norm(f"{prefix}.rbr_conv.{number}") for number in numbers]
        shape = next((branch.shape for branch in branches if branch is not None), None)
        if shape is None:
            self._drop(prefix)
            return None
        if self.below(f"{prefix}.rbr_scale."):
            branches.append(self.conv_norm(f"{prefix}.rbr_scale", shape[0]))
        if self.below(f"{prefix}.rbr_skip."):
            branches.append(self.skip(f"{prefix}.rbr_skip", shape))
        return self.total(prefix, shape, branches)

    def _drop(self, prefix: str) -> None:
        """Forgets the other branches of a block whose problem is already noted, so that it is told once."""
        for name in self.below(f"{prefix}.rbr_"):
            del self.rest[name]

    def total(self, prefix: str, shape: Shape, branches: list[Convolution | None]) -> Convolution | None:
        """Returns the sum of parallel convolutions, smaller kernels padded to `shape`."""
        whole = [branch for branch in branches if branch is not None]
        odd = [
            branch.shape for branch in whole
            if branch.shape[:2] != shape[:2] or (shape[2] - branch.shape[2]) % 2 or branch.shape[2] > shape[2]
            or branch.shape[2] != branch.shape[3]
        ]  # fmt: skip
        self.problems += [
            f"misshapen branch of {prefix}: {list(found)} does not fit into {list(shape)}" for found in odd
        ]
        if odd or len(whole) < len(branches):
            return None

        def values() -> tuple[Tensor, Tensor]:
            parts = [branch.values() for branch in whole]
            kernels = [padded(kernel, shape[2]) for kernel, _ in parts]
            return torch.stack(kernels).sum(0), torch.stack([bias for _, bias in parts]).sum(0)

        return Convolution(shape, values)

    def large_conv(self, prefix: str) -> Convolution | None:
        """Takes the large and, where there is one, the small kernel of a down-sampling convolution."""
        branches = [self.conv_norm(f"{prefix}.lkb_origin")]
        shape = branches[0].shape if branches[0] is not None else None
        if self.below(f"{prefix}.small_conv."):
            branches.append(self.conv_norm(f"{prefix}.small_conv", shape[0] if shape else None))
        return self.total(prefix, shape, branches) if shape else None

    def rep_mixer(self, prefix: str) -> Convolution | None:
        """Takes a RepMixer: x + layer_scale · (mixer(x) − norm(x))."""
        mixer = self.mobile_one(f"{prefix}.mixer")
        norm = self.skip(f"{prefix}.norm.rbr_skip", mixer.shape) if mixer is not None else None
        if mixer is None:
            self._drop(f"{prefix}.norm")
        scaled = self.mixers_scale  # a tower trained without layer scale has none in any mixer
        channels = mixer.shape[0] if mixer is not None else None
        scale = self.take(f"{prefix}.layer_scale", (channels, 1, 1) if channels else None) if scaled else None
        if mixer is None or norm is None or (scaled and scale is None):
            return None
        mixing, norming = mixer.values, norm.values

        def values() -> tuple[Tensor, Tensor]:
            (kernel, bias), (norm_kernel, norm_bias) = mixing(), norming()
            factor = scale.read().double().reshape(-1) if scale is not None else torch.ones_like(bias)
            fused = identity(mixer.shape) + factor[:, None, None, None] * (kernel - norm_kernel)
            return fused, factor * (bias - norm_bias)

        return Convolution(mixer.shape, values)

    def position(self, prefix: str) -> Convolution | None:
        """Takes a RepCPE: pe(x) + x."""
        kernel, bias = self.take(f"{prefix}.pe.weight"), self.take(f"{prefix}.pe.bias")
        if kernel is None or bias is None:
            return None
        shape = kernel.shape
        if len(shape) != 4 or bias.shape != shape[:1]:
            self.problems.append(f"misshapen {prefix}.pe: kernel {list(shape)} and bias {list(bias.shape)} do not fit")
            return None
        return Convolution(shape, lambda: (kernel.read().double() + identity(shape), bias.read().double()))


def identity(shape: Shape) -> Tensor:
    """Returns the float64 kernel (O, I/groups, k, k) that passes its input through; O equals I."""
    kernel = torch.zeros(shape, dtype=torch.float64)
    outputs = torch.arange(shape[0])
    kernel[outputs, outputs % shape[1], shape[2] // 2, shape[3] // 2] = 1
    return kernel


def padded(kernel: Tensor, size: int) -> Tensor:
    """Returns a kernel with zeros around it, to `size`; its centre stays the centre."""
    return F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4)
