"""FastViTHD and projector in closed form: each op of the graph that ships, at any image side.

Notable choices: one walk through the tower gives ops and weights; names are those of `export.encoder.EncoderGraph`.
What a checkpoint's ranges add (clamps around GELU, layer scales that do not fold) is a few elementwise ops, and left
out. Tests hold FLOPs, bytes and shapes against packages and graph.
It knows no chips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from fastvlm_ref.config import VisionConfig
from validation.fit.work import HALF, Shape, Weights, Work, elementwise, gathered, product, reduction

Stores = Callable[[str, Shape], Weights]
NORM_MULS = 6  # of a safe channel norm: two by element, four of one number for each position
NORM_SMALL = 4  # and what else it does of that kind: maximum and rsqrt, twice


def dense(_: str, shape: Shape) -> Weights:
    """A weight in fp16."""
    return Weights(HALF * prod(shape), HALF * prod(shape))


def tower_shapes(vision: VisionConfig, hidden: int) -> dict[str, Shape]:
    """Returns the shape of each convolution's weight by the graph's name of its layer, without `.weight`."""
    shapes: dict[str, Shape] = {}

    def note(layer: str, shape: Shape) -> Weights:
        shapes[layer.removeprefix("encoder.")] = shape
        return dense(layer, shape)

    tower_work(vision, hidden, vision.stride, note)
    return shapes


def tower_bytes(vision: VisionConfig, hidden: int, stored: Callable[[str, Shape], int], blob: int) -> int:
    """Returns the bytes of the encoder's weight file: weights, a bias of each, and `blob` for each of both."""
    shapes = tower_shapes(vision, hidden)
    return sum(stored(f"encoder.{name}", shape) + HALF * shape[0] + 2 * blob for name, shape in shapes.items())


def tower_work(vision: VisionConfig, hidden: int, side: int, stores: Stores = dense) -> list[Work]:
    """Returns the ops of `encode_<side>`; `stores` says how a layer's weight is stored."""
    walk = _Walk(side, stores)
    return gathered(_tower(walk, vision, hidden))


def _tower(walk: _Walk, vision: VisionConfig, hidden: int) -> Iterator[Work]:
    yield from _stem(walk, vision.widths[0])
    place = 0
    for stage, width in enumerate(vision.widths):
        if stage:
            yield from _embedding(walk, f"network.{place}", vision.widths[stage - 1], width)
            place += 1
        if vision.attention_stages[stage]:
            yield walk.depthwise(f"network.{place}", width, 7)
            place += 1
        block = _attention_block if vision.attention_stages[stage] else _mixer_block
        for index in range(vision.depths[stage]):
            yield from block(walk, f"network.{place}.{index}", width, vision.mlp_widths[stage], vision.head_dim)
        place += 1
    yield from _last(walk, vision, hidden)


class _Walk:
    """Where in the tower we are: the side of the map, and how weights are stored."""

    def __init__(self, side: int, stores: Stores) -> None:
        self.side, self.stores = side, stores

    @property
    def positions(self) -> int:
        return self.side**2

    def conv(self, name: str, shape: Shape, inputs: int, stride: int = 1) -> Work:
        """A convolution (outputs, inputs of a group, k, k) with its bias; leaves the map at its new side."""
        before, self.side = self.positions, self.side // stride
        outputs, results = shape[0], shape[0] * self.positions
        weights = (self.stores(f"encoder.{name}", shape), Weights(HALF * outputs, HALF * outputs))
        flops = 2 * results * prod(shape[1:]) + results
        return Work("conv", flops, weights, tensors=(HALF * inputs * before, HALF * results))

    def pointwise(self, name: str, inputs: int, outputs: int) -> Work:
        return self.conv(name, (outputs, inputs, 1, 1), inputs)

    def depthwise(self, name: str, width: int, kernel: int) -> Work:
        return self.conv(name, (width, 1, kernel, kernel), width)

    def each(self, op: str, width: int, reads: int = 1) -> Work:
        return elementwise(op, width * self.positions, reads)


def _stem(walk: _Walk, width: int) -> Iterator[Work]:
    for place, (shape, inputs, stride) in enumerate(
        (((width, 3, 3, 3), 3, 2), ((width, 1, 3, 3), width, 2), ((width, width, 1, 1), width, 1))
    ):
        yield walk.conv(f"patch_embed.{place}.conv", shape, inputs, stride)
        yield walk.each("gelu", width)


def _embedding(walk: _Walk, name: str, inputs: int, outputs: int) -> Iterator[Work]:
    yield walk.conv(f"{name}.0", (outputs, 1, 7, 7), inputs, 2)
    yield walk.each("gelu", outputs)
    yield walk.pointwise(f"{name}.2.conv", outputs, outputs)
    yield walk.each("gelu", outputs)


def _mixer_block(walk: _Walk, name: str, width: int, inner: int, _: int) -> Iterator[Work]:
    yield walk.depthwise(f"{name}.token_mixer", width, 3)
    yield from _feed_forward(walk, name, width, inner)


def _feed_forward(walk: _Walk, name: str, width: int, inner: int) -> Iterator[Work]:
    yield walk.depthwise(f"{name}.convffn.conv", width, 7)
    yield walk.pointwise(f"{name}.convffn.fc1", width, inner)
    yield walk.each("gelu", inner)
    yield walk.pointwise(f"{name}.convffn.fc2.conv", inner, width)
    yield walk.each("add", width, 2)


def _attention_block(walk: _Walk, name: str, width: int, inner: int, head_dim: int) -> Iterator[Work]:
    mixer = f"{name}.token_mixer"
    yield from _norm(walk, width)
    for part in "qkv":
        yield walk.pointwise(f"{mixer}.{part}", width, width)
    yield from _attention(walk.positions, width // head_dim, head_dim)
    yield walk.pointwise(f"{mixer}.proj.conv", width, width)
    yield walk.each("add", width, 2)
    yield from _feed_forward(walk, name, width, inner)


def _norm(walk: _Walk, width: int) -> Iterator[Work]:
    """`export.norms.SafeChannelNorm`."""
    for op, reads in (("abs", 1), ("mul", 1), ("sub", 1), ("mul", 2), ("mul", 1)):
        yield walk.each(op, width, reads)
    for op in ("reduce_max", "reduce_mean", "reduce_mean"):
        yield reduction(op, width * walk.positions, walk.positions)
    yield walk.each("small", 1, 1).times(NORM_MULS - 2 + NORM_SMALL)


def _attention(positions: int, heads: int, head_dim: int) -> Iterator[Work]:
    """Scores, softmax, and what they mix, all heads at once."""
    keys, scores = (heads, head_dim, positions), (heads, positions, positions)
    yield product(keys, keys, scores, head_dim)
    yield elementwise("softmax", prod(scores), flops=5)
    yield product(keys, scores, keys, positions)


def _last(walk: _Walk, vision: VisionConfig, hidden: int) -> Iterator[Work]:
    """conv_exp with its squeeze-excite, and the projector."""
    features, squeezed = vision.features, vision.se_channels
    yield walk.conv("conv_exp.conv", (features, 1, 3, 3), vision.widths[-1])
    yield walk.each("mul", features)
    yield reduction("reduce_mean", features * walk.positions, features * walk.side)
    side, walk.side = walk.side, 1
    yield reduction("reduce_mean", features * side, features)
    yield walk.pointwise("conv_exp.se.reduce", features, squeezed)
    yield walk.pointwise("conv_exp.se.expand", squeezed, features)
    walk.side = side
    yield walk.each("mul", features)
    yield walk.each("gelu", features)
    yield walk.pointwise("projector_0", features, hidden)
    yield walk.each("gelu", hidden)
    yield walk.pointwise("projector_2", hidden, hidden)
    yield Work("transpose", 0, tensors=(HALF * hidden * walk.positions,) * 2)
