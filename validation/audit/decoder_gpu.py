"""The language model's functions for `--target gpu`: rows of features (1, Q, H), linear layers as `linear`.

Heads come as (1, heads, Q, D), queries of a group as rows (kv_heads, G·Q, D), keys and values as (kv_heads, C, D).
A norm has its gain inside, once for x and once for −x; layers without a bias get one of zeros from coremltools.
"""

from __future__ import annotations

import numpy as np

from validation.audit.decoder import DecoderWalk, Found
from validation.audit.expected import Axes, Parameter, Shape, Window, Zeros


class GpuWalk(DecoderWalk):
    """The walk through a function for a GPU."""

    written_axis = 2

    def enter(self, embeds: Found) -> Found:
        return self.entered(embeds)

    def leave(self, x: Found, width: int) -> Found:
        return x

    def tables(self, cos: Found, sin: Found, mask: Found) -> None:
        self.walk.place = "the rotary tables"
        self.cos, self.sin, self.mask = cos, sin, mask
        if self.sizes.shifts_keys:
            signs = np.repeat([-1.0, 1.0], self.text.head_dim // 2).reshape(1, 1, 1, self.text.head_dim)
            self.turn = self.walk.op("sub", x=cos, y=1.0)
            self.signed = self.walk.op("mul", x=sin, y=signs)

    def norm(self, x: Found, parameter: str, eps: float) -> Found:
        """Layer norm of [x, −x], whose mean is 0."""
        walk, width = self.walk, self.text.hidden_size
        both = walk.op("concat", values=(x, walk.op("mul", x=x, y=-1.0)), axis=Axes((-1,)), interleave=False)
        eps *= 4.0**-self.sizes.protection.residual
        normed = walk.op("layer_norm", x=both, axes=Axes((-1,)), epsilon=eps, gamma=Parameter(parameter))
        return walk.op("slice_by_index", x=normed, begin=Window((None, None, (0, width))))

    def linear(self, x: Found, path: str, width: int, biased: bool = False) -> Found:
        bias = Parameter(f"{path}.bias") if biased else Zeros(width)
        return self.walk.op("linear", x=x, weight=Parameter(f"{path}.weight"), bias=bias)

    def written(self, path: str, normed: Found) -> Found:
        text = self.text
        keys = self._split(self.linear(normed, f"{path}.k_proj", text.kv_width, text.qkv_bias), text.kv_heads)
        keys = self.shifted(path, self._rotated(keys))
        values = self._split(self.linear(normed, f"{path}.v_proj", text.kv_width, text.qkv_bias), text.kv_heads)
        return self.walk.op("concat", values=(keys, values), axis=Axes((0,)), interleave=False)

    def attend(self, number: int, normed: Found, keys: Found, values: Found) -> Found:
        walk, text, query, context = self.walk, self.text, self.query, self.sizes.context
        path, width, rows = f"layers.{number}.self_attn", text.heads * text.head_dim, self.group * query
        q = self._split(self.linear(normed, f"{path}.q_proj", width, text.qkv_bias), text.heads)
        q = walk.op("reshape", x=self._rotated(q), shape=Shape((text.kv_heads, rows, text.head_dim)))
        scores = walk.op("matmul", x=q, y=keys, transpose_x=False, transpose_y=True)
        scores = walk.op("reshape", x=scores, shape=Shape((text.kv_heads, self.group, query, context)))
        weights = walk.op("reshape", x=self.weights(scores), shape=Shape((text.kv_heads, rows, context)))
        mixed = walk.op("matmul", x=weights, y=values, transpose_x=False, transpose_y=False)
        return self.linear(self._joined(mixed, width), f"{path}.o_proj", self.text.hidden_size)

    def _split(self, x: Found, heads: int) -> Found:
        """(1, Q, heads·D) -> (1, heads, Q, D)."""
        head_dim = self.text.head_dim
        if self.query == 1:
            return self.walk.op("reshape", x=x, shape=Shape((1, heads, 1, head_dim)))
        x = self.walk.op("reshape", x=x, shape=Shape((1, self.query, heads, head_dim)))
        return self.walk.op("transpose", x=x, perm=[0, 2, 1, 3])

    def _joined(self, x: Found, width: int) -> Found:
        """(kv_heads, G·Q, D) -> (1, Q, heads·D)."""
        if self.query > 1:
            shape = Shape((1, self.text.heads, self.query, self.text.head_dim))
            x = self.walk.op("transpose", x=self.walk.op("reshape", x=x, shape=shape), perm=[0, 2, 1, 3])
        return self.walk.op("reshape", x=x, shape=Shape((1, self.query, width)))

    def _rotated(self, x: Found) -> Found:
        """x · cos + (−x₂, x₁) · sin."""
        walk = self.walk
        first, second = self.halves(x, -1)
        turned = walk.op("concat", values=(walk.op("mul", x=second, y=-1.0), first), axis=Axes((-1,)), interleave=False)
        return walk.op("add", x=walk.op("mul", x=x, y=self.cos), y=walk.op("mul", x=turned, y=self.sin))
