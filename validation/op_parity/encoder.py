"""The pieces of the vision encoder: every convolution alone, and all that stands between two of them.

    image -> patch_embed -> stages: RepMixer and attention blocks, down-sampling between them -> conv_exp -> projector

The order is that of `export.encoder.EncoderGraph`, whose convolutions lead from one piece to the next; values of the
program are maps (1, C, h, w) stored as x · 2^−e. Without projector the last piece begins behind the last convolution of
conv_exp and ends with the tokens. What works on channels or on a window alone is tried on maps of a few
points, attention and norms on the program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn

from export.encoder import AttentionGraph, EncoderGraph, Scaled
from export.norms import SafeChannelNorm
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.convffn import ConvFFN
from fastvlm_ref.model.fastvithd import PatchEmbed
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.mobileone import MobileOneBlock, SEBlock
from fastvlm_ref.model.repmixer import RepMixerBlock
from validation.counterparts.counterpart import Counterpart
from validation.counterparts.encoder import TOWER, encoder_counterparts
from validation.encoder_form import EncoderForm
from validation.op_parity.between import ACTIVATION, LINEAR, Compute, between
from validation.op_parity.encoder_attention import attention_piece, norm_piece, with_affine
from validation.op_parity.encoder_ends import image_piece, scale_piece, tokens_end, tokens_piece
from validation.op_parity.maps import MAPS, POINTS, spot, tokens
from validation.op_parity.partly import partly
from validation.op_parity.piece import Piece, Spot
from validation.op_parity.weighted import Answers, weighted
from validation.program import Value
from validation.program.anchors import Anchors

WINDOW = 16  # side of the maps that a kernel wider than 1×1 is tried on


@dataclass(frozen=True)
class _Pending:
    """What stands behind the last convolution: which values it takes, and what the next one should be given."""

    name: str
    block: str
    begins: tuple[Spot, ...]
    compute: Compute
    kinds: Sequence[str] = ACTIVATION
    whole: bool = False  # it looks at maps as a whole


class EncoderPieces:
    """Gives the pieces of one function of the encoder, in the order in which they run."""

    def __init__(self, model: FastVLM, graph: EncoderGraph, form: EncoderForm, anchors: Anchors) -> None:
        self.model, self.graph, self.form, self.anchors = model, graph, form, anchors
        self.known = {each.parameter: each for each in encoder_counterparts(model, graph)}
        self.answers = Answers()
        self.pending: _Pending | None = None

    def __iter__(self) -> Iterator[Piece]:
        first = next(iter(self.known.values()))
        yield image_piece(self.anchors, self.form, first.block, self.taken(first.parameter))
        for name, own in groupby(self.known.values(), key=lambda counterpart: counterpart.block):
            yield from self._block(name, [counterpart.parameter for counterpart in own])
        end = tokens_end(self.anchors)
        if self.form.projected:
            yield tokens_piece(self.given("projector_2"), end)
        elif self.pending is not None:
            behind = self.pending.compute
            yield self._piece(replace(self.pending, compute=lambda *x: tokens(behind(*x))), end)

    def taken(self, path: str) -> Spot:
        """What a convolution takes."""
        return spot(partial(self.anchors.taken, path), self.known[path].takes)

    def given(self, path: str) -> Spot:
        """What a convolution gives."""
        return spot(partial(self.anchors.given, path), self.known[path].gives)

    def _block(self, name: str, own: list[str]) -> Iterator[Piece]:
        module = self.model.get_submodule(name)
        if isinstance(module, RepMixerBlock):
            yield from self._repmixer(name, module)
        elif isinstance(module, AttentionBlock):
            yield from self._attention(name, module)
        elif isinstance(module, MobileOneBlock) and isinstance(module.se, SEBlock):
            yield from self._squeeze_excite(name, module, own)
        else:
            for path, behind in zip(own, _activations(module), strict=True):
                yield from self._conv(path)
                self._behind(path, name, behind)

    def _conv(self, path: str) -> Iterator[Piece]:
        """What stands before a convolution, and the convolution."""
        if self.pending is not None:
            yield self._piece(self.pending, self.taken(path))
        self.pending = None
        yield self._weighted(self.known[path], cast(nn.Conv2d, self.graph.get_submodule(path)))

    def _weighted(self, counterpart: Counterpart, conv: nn.Conv2d) -> Piece:
        module, taken = self.model.get_submodule(counterpart.module), self.taken(counterpart.parameter)
        block = self.model.get_submodule(counterpart.block)

        def enter(x: Tensor) -> Tensor:
            x = taken.to_reference(x)
            if isinstance(block, AttentionBlock) and counterpart.module.endswith(".qkv"):
                x = with_affine(block.norm, x)
            return tokens(x) if isinstance(module, nn.Linear) else x

        return weighted(
            self.anchors, counterpart, replace(taken, to_reference=enter), module, self.answers, "encoder",
            axes=MAPS, size=POINTS if conv.kernel_size == (1, 1) else WINDOW, channels=1,
        )  # fmt: skip

    def _piece(self, pending: _Pending, end: Spot) -> Piece:
        free = () if pending.whole else MAPS
        return between(
            pending.name, pending.block, pending.begins, (end,), pending.compute,
            kinds=pending.kinds, free=free, size=POINTS, optional=pending.compute is _same,
        )  # fmt: skip

    def _behind(self, path: str, block: str, compute: Compute | None) -> None:
        """Notes what stands behind a convolution; None: nothing but perhaps a power of two."""
        kinds = ACTIVATION if compute else LINEAR
        name = f"{path} activation" if compute else f"{path}, passed on"
        self.pending = _Pending(name, block, (self.given(path),), compute or _same, kinds)

    def _repmixer(self, name: str, module: RepMixerBlock) -> Iterator[Piece]:
        path = name.removeprefix(TOWER)
        yield from self._conv(f"{path}.token_mixer")
        stream = self.given(f"{path}.token_mixer")
        self._behind(f"{path}.token_mixer", name, None)
        yield from self._ffn(name, module.convffn, stream, module.layer_scale)

    def _attention(self, name: str, module: AttentionBlock) -> Iterator[Piece]:
        assert self.pending is not None
        (stream,), mixer = self.pending.begins, f"{name.removeprefix(TOWER)}.token_mixer"
        parts = [f"{mixer}.{part}" for part in "qkv"]
        safe = isinstance(cast(AttentionGraph, self.graph.get_submodule(mixer)).norm, SafeChannelNorm)
        ends = [self.taken(part) for part in parts]
        self.pending = None
        yield norm_piece(mixer, name, module.norm, self._stream(name), safe, stream, ends)
        for part in parts:
            yield from self._conv(part)
        root = module.token_mixer.head_dim**-0.5
        queries = spot(partial(self.anchors.given, parts[0]), self.known[parts[0]].gives, root)
        given = [queries, *map(self.given, parts[1:])]
        yield attention_piece(mixer, name, module.token_mixer, given, self.taken(f"{mixer}.proj.conv"))
        yield from self._conv(f"{mixer}.proj.conv")
        stream = yield from self._added(name, f"{mixer}.proj", stream, module.layer_scale_1)
        yield from self._ffn(name, module.convffn, stream, module.layer_scale_2)

    def _ffn(self, name: str, module: ConvFFN, stream: Spot, scale: Tensor) -> Iterator[Piece]:
        path = f"{name.removeprefix(TOWER)}.convffn"
        yield from self._conv(f"{path}.conv")
        self._behind(f"{path}.conv", name, None)
        yield from self._conv(f"{path}.fc1")
        self._behind(f"{path}.fc1", name, lambda y: partly(module, None, given={"conv": y, "fc1": y}, wanted="fc2"))
        yield from self._conv(f"{path}.fc2.conv")
        yield from self._added(name, f"{path}.fc2", stream, scale)

    def _added(self, name: str, path: str, stream: Spot, scale: Tensor) -> Generator[Piece, None, Spot]:
        """The layer scale where it is an op of its own, and the sum; returns the sum, which is then pending."""
        exponent, result = self._stream(name), self.given(f"{path}.conv")
        graph = cast(Scaled, self.graph.get_submodule(path))
        if graph.scale is not None:
            scaled, power = spot(self._scaled(path), exponent), getattr(graph.conv, "writes", 0) - exponent
            yield scale_piece(path, name, scale, power, result, scaled)
            result = scaled
        summed = spot(partial(self.anchors.added, f"{path}.conv"), exponent)
        yield between(f"{path} sum", name, (stream, result), (summed,), torch.add, free=MAPS, size=POINTS)
        self.pending = _Pending(f"{path} sum, passed on", name, (summed,), _same, LINEAR)
        return summed

    def _scaled(self, path: str) -> Callable[[], Value]:
        return lambda: self.anchors.weighted(path, "scale").result

    def _stream(self, name: str) -> int:
        """The exponent of a block's residual stream."""
        return int(getattr(self.graph.get_submodule(f"{name.removeprefix(TOWER)}.convffn.conv"), "reads", 0))

    def _squeeze_excite(self, name: str, module: MobileOneBlock, own: list[str]) -> Iterator[Piece]:
        """x · σ(expand(relu(reduce(mean(x))))), then GELU: `own` are the convolution, reduce and expand."""
        conv, reduce, expand = own
        gate, none = cast(SEBlock, module.se), torch.zeros(1, 1, 1, 1)
        yield from self._conv(conv)
        self.pending = _Pending(
            f"{reduce} mean", name, (self.given(conv),),
            lambda x: partly(gate, x, given={"expand": none}, wanted="reduce"), ("positive",), whole=True,
        )  # fmt: skip
        yield from self._conv(reduce)
        self._behind(reduce, name, lambda y: partly(gate, none, given={"reduce": y}, wanted="expand"))
        yield from self._conv(expand)
        self.pending = _Pending(
            f"{conv} gate and activation", name, (self.given(conv), self.given(expand)),
            lambda x, y: partly(module, None, given={"reparam_conv": x, "se.reduce": none, "se.expand": y}), whole=True,
        )  # fmt: skip


def _activations(module: nn.Module) -> list[Compute | None]:
    """What stands behind each convolution of a block: its activation, or None."""
    if isinstance(module, MobileOneBlock):
        return [lambda y: partly(module, None, given={"reparam_conv": y})]
    if isinstance(module, PatchEmbed):
        large, small = "proj.0.lkb_reparam", "proj.1.reparam_conv"
        return [
            lambda y: partly(module, None, given={large: y}, wanted=small),
            lambda y: partly(module, None, given={large: y, small: y}),
        ]
    if isinstance(module, nn.Sequential):  # the projector
        return [lambda y: partly(module, None, given={"0": y}, wanted="2"), None]
    return [None]  # RepCPE


def _same(x: Tensor) -> Tensor:
    return x
