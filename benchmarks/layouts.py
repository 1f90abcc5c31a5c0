"""Decoders of both layouts, written op by op with coremltools' builder: what `benchmarks/speed.py layout` compares.

They have the ops and shapes of what `fastvlm export --target ane` and `--target gpu` write for one row, with weights of
a seed. `ane` is channels first: 1x1 convolutions, a state that ends in positions, rows made small before each norm.
`gpu` has rank 3, `linear`, and a state that ends in channels. Neither has a head, which is the same product in both.
Nothing here knows a checkpoint or the export, so a layout can be tried here before it is built there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from validation.mil import MILModel

STATE = "kvCache"
EPS = np.float16(1e-6)


@dataclass(frozen=True)
class Sizes:
    """Widths of a decoder, how many of its layers are built, and the positions of its state."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int = 4
    context: int = 2048

    @property
    def group(self) -> int:
        """Queries that share a key."""
        return self.heads // self.kv_heads

    @property
    def largest(self) -> float:
        """The power of two within which 2 · hidden squares add up to what fp16 holds."""
        return 2.0 ** np.floor(np.log2(np.sqrt(65504 / (2 * self.hidden))))


SIZES = {
    "0.5b": Sizes(896, 4864, 14, 2, 64),
    "1.5b": Sizes(1536, 8960, 12, 2, 128),
    "7b": Sizes(3584, 18944, 28, 4, 128),
}


@dataclass(frozen=True)
class Step:
    """What every layer is given: the state, the position as scalar and the one after it, mask and angles."""

    state: Any
    at: Any
    end: Any
    mask: Any
    cos: Any
    sin: Any


class Layout:
    """What both have in common; `random` gives the weights."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.random = sizes, np.random.default_rng(0)

    def weight(self, outputs: int, inputs: int) -> np.ndarray:
        """fp16 (outputs, inputs) that keeps activations near one."""
        drawn = self.random.standard_normal((outputs, inputs), np.float32) * inputs**-0.5
        return np.asarray(drawn, np.float16)

    def written(self, step: Step, both: Any, row: int, positions: int) -> list[Any]:
        """Writes keys and values as rows `row` and `row` + 1 of the state, and gives back all that are there.

        both: (2, ...) like the state; positions: the axis of positions.
        """
        begin: list[Any] = [np.int32(row), *[np.int32(0)] * 3]
        end: list[Any] = [np.int32(row + 2), *[np.int32(0)] * 3]
        begin[positions], end[positions] = step.at, step.end
        masked = [axis not in (0, positions) for axis in range(4)]
        bounds = {"begin": mb.concat(values=begin, axis=0), "end": mb.concat(values=end, axis=0), "end_mask": masked}
        cache = mb.slice_update(x=mb.read_state(input=step.state), update=both, **bounds)
        cache = mb.coreml_update_state(state=step.state, value=cache)
        whole = {"end_mask": [False, True, True, True], "squeeze_mask": [True, False, False, False]}
        return [
            mb.slice_by_index(x=cache, begin=[one, 0, 0, 0], end=[one + 1, 0, 0, 0], **whole) for one in (row, row + 1)
        ]

    def rotated(self, x: Any, step: Step, axis: int) -> Any:
        """x with its halves on `axis` turned: x · cos + (x₂, x₁) · sin, the first half of sin negative."""
        first, second = mb.split(x=x, num_splits=2, axis=axis)
        swapped = mb.concat(values=[second, first], axis=axis)
        return mb.add(x=mb.mul(x=x, y=step.cos), y=mb.mul(x=swapped, y=step.sin))


class Ane(Layout):
    """(1, H, 1, 1), state (2 · layers, kv_heads, D, C)."""

    def state(self) -> tuple[int, ...]:
        """The shape of the state."""
        sizes = self.sizes
        return (2 * sizes.layers, sizes.kv_heads, sizes.head_dim, sizes.context)

    def enter(self, x: Any) -> Any:
        """The embedding (1, 1, H) as the layers take it."""
        return mb.reshape(x=x, shape=(1, self.sizes.hidden, 1, 1))

    def angles(self, x: Any) -> Any:
        """A table (1, 1, 1, D) as `rotated` takes it."""
        return mb.reshape(x=x, shape=(1, self.sizes.head_dim, 1))

    def norm(self, x: Any) -> Any:
        """RMSNorm: the row made small, then layer norm of [x, -x]."""
        sizes = self.sizes
        most = mb.reduce_max(x=mb.abs(x=x), axes=[1], keep_dims=True)
        divisor = mb.maximum(x=mb.mul(x=most, y=np.float16(1 / sizes.largest)), y=np.float16(1))
        small = mb.real_div(x=x, y=divisor)
        mirrored = mb.concat(values=[small, mb.mul(x=small, y=np.float16(-1))], axis=1)
        normed = mb.split(x=mb.layer_norm(x=mirrored, axes=[1], epsilon=EPS), num_splits=2, axis=1)[0]
        return mb.mul(x=normed, y=np.ones((1, sizes.hidden, 1, 1), np.float16))

    def by_head(self, rows: np.ndarray) -> np.ndarray:
        """Rows (kv_heads, G, D) in the order (kv_heads, D, G): `reshape` then splits off the heads of every group."""
        sizes = self.sizes
        grouped = rows.reshape(sizes.kv_heads, sizes.group, sizes.head_dim, -1)
        return grouped.transpose(0, 2, 1, 3).reshape(rows.shape)

    def project(self, x: Any, weight: np.ndarray, bias: bool = False) -> Any:
        """A 1x1 convolution."""
        own = {"bias": np.full(len(weight), 0.1, np.float16)} if bias else {}
        return mb.conv(x=x, weight=weight.reshape(*weight.shape, 1, 1), **own)

    def attend(self, q: Any, k: Any, v: Any, step: Step, row: int) -> Any:
        """Queries (1, heads · D, 1, 1) over all positions."""
        sizes, (kv, dim) = self.sizes, (self.sizes.kv_heads, self.sizes.head_dim)
        k = self.rotated(mb.reshape(x=k, shape=(kv, dim, 1)), step, 1)
        new = [mb.reshape(x=part, shape=(1, kv, dim, 1)) for part in (k, v)]
        keys, values = self.written(step, mb.concat(values=new, axis=0), row, 3)
        q = self.rotated(mb.reshape(x=q, shape=(kv, dim, sizes.group)), step, 1)
        scores = mb.add(x=mb.matmul(x=q, y=keys, transpose_x=True), y=mb.reshape(x=step.mask, shape=(1, 1, -1)))
        mixed = mb.matmul(x=values, y=mb.softmax(x=scores, axis=-1), transpose_y=True)
        return mb.reshape(x=mixed, shape=(1, sizes.heads * dim, 1, 1))


class Gpu(Layout):
    """(1, 1, H), state (2 · layers, kv_heads, C, D)."""

    def state(self) -> tuple[int, ...]:
        """The shape of the state."""
        sizes = self.sizes
        return (2 * sizes.layers, sizes.kv_heads, sizes.context, sizes.head_dim)

    def enter(self, x: Any) -> Any:
        """The embedding (1, 1, H) as the layers take it."""
        return x

    def angles(self, x: Any) -> Any:
        """A table (1, 1, 1, D) as `rotated` takes it."""
        return x

    def norm(self, x: Any) -> Any:
        """RMSNorm as layer norm of [x, -x]."""
        hidden = self.sizes.hidden
        mirrored = mb.concat(values=[x, mb.mul(x=x, y=np.float16(-1))], axis=-1)
        normed = mb.layer_norm(x=mirrored, axes=[-1], gamma=np.ones(2 * hidden, np.float16), epsilon=EPS)
        return mb.slice_by_index(x=normed, begin=[0, 0, 0], end=[0, 0, hidden], end_mask=[True, True, False])

    def by_head(self, rows: np.ndarray) -> np.ndarray:
        """Rows (kv_heads, G, D) as they are."""
        return rows

    def project(self, x: Any, weight: np.ndarray, bias: bool = False) -> Any:
        """A linear layer."""
        own = {"bias": np.full(len(weight), 0.1, np.float16)} if bias else {}
        return mb.linear(x=x, weight=weight, **own)

    def attend(self, q: Any, k: Any, v: Any, step: Step, row: int) -> Any:
        """Queries (1, 1, heads · D) over all positions."""
        sizes, (kv, dim) = self.sizes, (self.sizes.kv_heads, self.sizes.head_dim)
        k, v = (mb.reshape(x=part, shape=(1, kv, 1, dim)) for part in (k, v))
        keys, values = self.written(step, mb.concat(values=[self.rotated(k, step, -1), v], axis=0), row, 2)
        q = self.rotated(mb.reshape(x=q, shape=(1, sizes.heads, 1, dim)), step, -1)
        scores = mb.matmul(x=mb.reshape(x=q, shape=(kv, sizes.group, dim)), y=keys, transpose_y=True)
        scores = mb.add(x=mb.reshape(x=scores, shape=(kv, sizes.group, 1, sizes.context)), y=step.mask)
        shares = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=(kv, sizes.group, sizes.context))
        return mb.reshape(x=mb.matmul(x=shares, y=values), shape=(1, 1, sizes.heads * dim))


LAYOUTS: dict[str, Callable[[Sizes], Ane | Gpu]] = {"ane": Ane, "gpu": Gpu}


def layer(layout: Ane | Gpu, x: Any, step: Step, row: int) -> Any:
    """x += attention(norm(x)); x += mlp(norm(x))."""
    sizes, width = layout.sizes, layout.sizes.head_dim * layout.sizes.heads
    keys = layout.sizes.head_dim * layout.sizes.kv_heads
    normed = layout.norm(x)
    q = layout.project(normed, layout.by_head(layout.weight(width, sizes.hidden)), bias=True)
    k, v = (layout.project(normed, layout.weight(keys, sizes.hidden), bias=True) for _ in range(2))
    out = layout.by_head(layout.weight(sizes.hidden, width).T).T
    x = mb.add(x=x, y=layout.project(layout.attend(q, k, v, step, row), out))
    normed = layout.norm(x)
    gate, up = (layout.project(normed, layout.weight(sizes.inner, sizes.hidden)) for _ in range(2))
    down = layout.weight(sizes.hidden, sizes.inner)
    return mb.add(x=x, y=layout.project(mb.mul(x=mb.silu(x=gate), y=up), down))


def decoder(name: str, sizes: Sizes) -> Any:
    """A program of one row through the layers of that layout, as coremltools saves it."""
    layout = LAYOUTS[name](sizes)

    def half(*shape: int) -> Any:
        return mb.TensorSpec(shape, types.fp16)

    inputs = [half(1, 1, sizes.hidden), half(1, 1, 1, sizes.head_dim), half(1, 1, 1, sizes.head_dim)]
    inputs += [half(1, 1, 1, sizes.context), mb.TensorSpec((1,), types.int32)]
    inputs += [mb.StateTensorSpec(layout.state(), types.fp16)]

    @mb.program(input_specs=inputs, opset_version=ct.target.iOS18)
    def program(x: Any, cos: Any, sin: Any, mask: Any, position: Any, kvCache: Any) -> Any:
        at = mb.squeeze(x=position, axes=[0])
        step = Step(kvCache, at, mb.add(x=at, y=1), mask, layout.angles(cos), layout.angles(sin))
        x = layout.enter(x)
        for row in range(0, 2 * sizes.layers, 2):
            x = layer(layout, x, step, row)
        return x

    return converted(program)


def converted(program: Any) -> Any:
    """The model of a builder's program, op by op as it was written."""
    return ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, pass_pipeline=ct.PassPipeline.EMPTY,
        compute_precision=ct.precision.FLOAT32, skip_model_load=True,
    )  # fmt: skip


def row_at(sizes: Sizes, position: int) -> dict[str, np.ndarray]:
    """Inputs for one row at `position`: an embedding of a seed, angles, and a mask that shows what is before it."""
    random = np.random.default_rng(position)
    turn = position / 10000 ** (np.arange(sizes.head_dim // 2) / (sizes.head_dim // 2))
    sin = np.concatenate((-np.sin(turn), np.sin(turn)))
    return {
        "x": random.standard_normal((1, 1, sizes.hidden)).astype(np.float16),
        "cos": np.concatenate((np.cos(turn),) * 2).astype(np.float16).reshape(1, 1, 1, -1),
        "sin": sin.astype(np.float16).reshape(1, 1, 1, -1),
        "mask": np.where(np.arange(sizes.context) <= position, 0, -1e4).astype(np.float16).reshape(1, 1, 1, -1),
        "position": np.array([position], np.int32),
    }


def steps(sizes: Sizes) -> dict[str, Callable[[], np.ndarray]]:
    """One step of each layout at the last position of its state; each gives the row (H,) that leaves the layers."""
    given = row_at(sizes, sizes.context - 1)

    def step(model: MILModel, state: Any) -> np.ndarray:
        (row,) = model.predict(given, state).values()
        return np.asarray(row, np.float32).reshape(-1)

    models = {name: MILModel(decoder(name, sizes)) for name in LAYOUTS}
    return {name: partial(step, model, model.make_state()) for name, model in models.items()}
