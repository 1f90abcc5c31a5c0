"""The language model's functions for `--target ane`: (1, H, 1, Q), linear layers as 1×1 convolutions.

Heads of queries come as (kv_heads, D, G, Q), keys and values as (kv_heads, D, C); the sine has its first half negated
once, so that halves of a head only change places. One row needs no transpose.
"""

from __future__ import annotations

import numpy as np

from validation.audit.decoder import DecoderWalk, Found, outputs
from validation.audit.encoder import POINTWISE, geometry
from validation.audit.expected import Axes, Parameter, Shape
from validation.audit.forms import shrunk


class AneWalk(DecoderWalk):
    """The walk through a function for the Neural Engine."""

    written_axis = 3

    def enter(self, embeds: Found) -> Found:
        x = embeds if self.query == 1 else self.walk.op("transpose", x=embeds, perm=[0, 2, 1])
        x = self.walk.op("reshape", x=x, shape=Shape((1, self.text.hidden_size, 1, self.query)))
        return self.entered(x)

    def leave(self, x: Found, width: int) -> Found:
        if self.query == 1:
            return self.walk.op("reshape", x=x, shape=Shape((1, 1, width)))
        x = self.walk.op("reshape", x=x, shape=Shape((1, width, self.query)))
        return self.walk.op("transpose", x=x, perm=[0, 2, 1])

    def tables(self, cos: Found, sin: Found, mask: Found) -> None:
        """Walks what brings the rotary tables and the mask into this layout."""
        walk, head_dim = self.walk, self.text.head_dim
        walk.place = "the rotary tables"
        if self.query == 1:
            shape = Shape((1, head_dim, 1, 1))
            self.cos, sin = walk.op("reshape", x=cos, shape=shape), walk.op("reshape", x=sin, shape=shape)
            self.mask = walk.op("reshape", x=mask, shape=Shape((1, 1, self.sizes.context)))
        else:
            self.cos, sin = (walk.op("transpose", x=each, perm=[0, 3, 1, 2]) for each in (cos, sin))
            self.mask = mask
        signs = np.repeat([-1.0, 1.0], head_dim // 2).reshape(1, head_dim, 1, 1)
        self.sin = self.signed = walk.op("mul", x=sin, y=signs)
        if self.sizes.shifts_keys:
            self.turn = walk.op("sub", x=self.cos, y=1.0)

    def norm(self, x: Found, parameter: str, eps: float) -> Found:
        """Layer norm of [y, −y], whose mean is 0; y = x · s, s = 1 for small rows."""
        walk, width, guard = self.walk, self.text.hidden_size, self.sizes.protection
        if guard.safe_forms:
            x, _ = shrunk(walk, x, 2 * width, 2.0**-guard.residual)
        else:
            eps *= 4.0**-guard.residual
        both = walk.op("concat", values=(x, walk.op("mul", x=x, y=-1.0)), axis=Axes((1,)), interleave=False)
        normed = walk.op("layer_norm", x=both, axes=Axes((1,)), epsilon=eps)
        first, _ = outputs(walk.step("split", x=normed, axis=Axes((1,)), split_sizes=[width, width]))
        return walk.op("mul", x=first, y=Parameter(parameter))

    def linear(self, x: Found, path: str, width: int, biased: bool = False) -> Found:
        arguments = geometry(POINTWISE)
        if biased:
            arguments["bias"] = Parameter(f"{path}.bias")
        return self.walk.op("conv", x=x, weight=Parameter(f"{path}.weight"), **arguments)

    def written(self, path: str, normed: Found) -> Found:
        """Walks the keys and values of the new rows, as they go into the state."""
        walk, text = self.walk, self.text
        rows = Shape((1, text.kv_heads, text.head_dim, self.query))
        values = self.linear(normed, f"{path}.v_proj", text.kv_width, text.qkv_bias)
        values = walk.op("reshape", x=values, shape=rows)
        keys = self.linear(normed, f"{path}.k_proj", text.kv_width, text.qkv_bias)
        keys = walk.op("reshape", x=keys, shape=Shape((text.kv_heads, text.head_dim, 1, self.query)))
        keys = walk.op("reshape", x=self.shifted(path, self._rotated(keys)), shape=rows)
        return walk.op("concat", values=(keys, values), axis=Axes((0,)), interleave=False)

    def attend(self, number: int, normed: Found, keys: Found, values: Found) -> Found:
        walk, text, group, query = self.walk, self.text, self.group, self.query
        path, width = f"layers.{number}.self_attn", text.heads * text.head_dim
        q = self.linear(normed, f"{path}.q_proj", width, text.qkv_bias)
        q = self._rotated(walk.op("reshape", x=q, shape=Shape((text.kv_heads, text.head_dim, group, query))))
        q = walk.op("reshape", x=q, shape=Shape((text.kv_heads, text.head_dim, group * query)))
        scores = walk.op("matmul", x=q, y=keys, transpose_x=True, transpose_y=False)
        if query > 1:
            context = self.sizes.context
            scores = walk.op("reshape", x=scores, shape=Shape((text.kv_heads, group, query, context)))
            weights = walk.op("reshape", x=self.weights(scores), shape=Shape((text.kv_heads, group * query, context)))
        else:
            weights = self.weights(scores)
        mixed = walk.op("matmul", x=values, y=weights, transpose_x=False, transpose_y=True)
        return self.linear(walk.op("reshape", x=mixed, shape=Shape((1, width, 1, query))), f"{path}.o_proj", width)

    def _rotated(self, x: Found) -> Found:
        """x · cos + (x₂, x₁) · sin, the first half of sin negative."""
        walk = self.walk
        first, second = self.halves(x, 1)
        turned = walk.op("concat", values=(second, first), axis=Axes((1,)), interleave=False)
        crossed = walk.op("mul", x=turned, y=self.sin)
        return walk.op("add", x=walk.op("mul", x=x, y=self.cos), y=crossed)
