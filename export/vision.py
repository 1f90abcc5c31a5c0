"""The vision encoder as Core ML: converted once, with stand-ins, for every size that is asked for.

Its graph holds no size, and its programs at two sizes differ in nothing but the sides of the feature maps. So it is
converted at a side of 64 · p pixels, p a prime: every map's side is then p times a power of two and the number of image
tokens p², which marks where the numbers of a real side belong. Weights hold one value, and the widths inside MLPs and
projector are primes (`export.standin`): reading weights is most of the converter's time and memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from export.choice import Compression
from export.contract import FunctionSpec
from export.convert import Converted, constant_name, converted, trace
from export.encoder import EncoderGraph
from export.parameters import graph_weights
from export.plan import STRIDE
from export.protection import PROTECTED, Protection
from export.standin import primes, restore_sizes, without_weights
from fastvlm_ref.model.fastvlm import FastVLM

TRACE_SIDE = 128  # the smallest side whose last stage is not 1×1
HALVINGS = 6  # from the picture to the last stage: 64 = 2⁶


def converted_encoder(
    model: FastVLM,
    specs: tuple[FunctionSpec, ...],
    compression: Compression | None = None,
    protection: Protection = PROTECTED,
    *,
    projector: bool = True,
) -> Iterator[Converted]:
    """Gives one converted function for each of `specs`; each lives until the next is asked for.

    `projector`: whether it is behind the tower.
    """
    graph = EncoderGraph(model, protection, projector)
    of = (compression or Compression()).of
    weights = {constant_name(name): of(weight) for name, weight in graph_weights(graph, "vision_encoder").items()}
    small = _stand_in(model, graph)
    widths = {real: stand_in for stand_in, real in small.widths.items()}
    shrunk = without_weights(graph, lambda name, shape: _shrunk(name, shape, widths))
    traced = trace(shrunk, ((1, 3, TRACE_SIDE, TRACE_SIDE),))
    with converted(traced, _at_side(specs[0], small.side)) as function:
        for spec in specs:
            proto = copy.deepcopy(function.proto)
            real = {**small.widths, **small.lengths(spec.inputs[0].shape[-1])}
            restore_sizes(proto.mlProgram.functions["main"], proto.description, real)
            yield replace(function, spec=spec, proto=proto, parameters=weights)


def _at_side(spec: FunctionSpec, side: int) -> FunctionSpec:
    """The function with an input of another side; the shape of its result is what comes out."""
    (pixels,) = spec.inputs
    return replace(spec, inputs=(replace(pixels, shape=(*pixels.shape[:2], side, side)),))


@dataclass(frozen=True)
class _StandIn:
    """The side at which the encoder is converted, and the MLP widths: stand-in -> real."""

    side: int
    widths: Mapping[int, int]

    def lengths(self, side: int) -> dict[int, int]:
        """Returns every length that depends on the side: of maps, and of their pixels in a row; stand-in -> real."""
        sides = [(self.side >> halving, side >> halving) for halving in range(HALVINGS + 1)]
        return {small**power: real**power for small, real in sides for power in (1, 2)}


def _stand_in(model: FastVLM, graph: nn.Module) -> _StandIn:
    """Chooses primes so that no length of the program is another's stand-in."""
    taken = {length for _, parameter in graph.named_parameters() for length in parameter.shape}
    vision = model.config.vision
    taken |= {width // vision.head_dim for width in vision.widths} | {vision.head_dim}
    free = (prime for prime in primes(211) if prime not in taken)
    widths = {next(free): width for width in sorted({*vision.mlp_widths, model.config.text.hidden_size})}
    for prime in primes(11):
        lengths = _StandIn(STRIDE * prime, widths).lengths(STRIDE).keys()
        if not lengths & (taken | widths.keys()):
            return _StandIn(STRIDE * prime, widths)
    raise AssertionError("there is always another prime")


def _shrunk(name: str, shape: tuple[int, ...], widths: Mapping[int, int]) -> tuple[int, ...]:
    """The shape of a parameter of an MLP or the projector at its stand-in width: first outputs, second inputs."""
    if ".convffn.fc1." in name or name.startswith("projector_0."):
        return (widths[shape[0]], *shape[1:])
    if name.endswith(".convffn.fc2.conv.weight") or name == "projector_2.weight":
        return (shape[0], widths[shape[1]], *shape[2:])
    return shape
