"""The decoder as the Neural Engine likes it: channels first, 1×1 convolutions, no transpose inside a layer.

A residual stream is (1, H, 1, Q). Notable choices:
- the rows of q_proj are put into the order (kv_heads, D, G) when weights are written, the columns of o_proj likewise:
  then every head splits off by `reshape`, queries of a group lie side by side as (kv_heads, D, G·Q), and keys are
  neither repeated nor transposed (`export.decoder_weights`);
- keys and values of all layers are one state (2·layers, kv_heads, D, C), written on its last axis, which a multiple
  of 32 keeps aligned (ct#2631), with one slice_update a layer, because an engine may copy the state at each;
- `matmul`'s own flags stand for the two transposes of attention, and softmax runs over the last axis, C;
- nothing has a rank above 4; rows are made small before RMSNorm (`export.norms`);
- the sine comes with its first half negative, so that half of a head is never negated.
Sources: Apple's iOS primitives (apple/coreai-models), Deploying Transformers on the Apple Neural Engine; docs/ane.md
says where this differs from them. It knows nothing of Core ML.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export import layout
from export.layout import GraphSizes, Rope
from export.nonlinear import softmax
from export.norms import BoundedRMSNorm


def convolution(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    """Returns a linear layer as a 1×1 convolution, without numbers."""
    with torch.device("meta"):
        return nn.Conv2d(inputs, outputs, 1, bias=bias).requires_grad_(False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary embedding to (kv_heads, D, …, Q): x·cos + (x₂, x₁)·sin, the first half of sin negative."""
    first, second = x.chunk(2, 1)
    return x * cos + torch.cat((second, first), 1) * sin


class Attention(layout.Attention):
    """Grouped-query attention of Q rows over the C positions of the state."""

    def __init__(self, sizes: GraphSizes, row: int) -> None:
        super().__init__()
        text = sizes.text
        self.sizes, self.text, self.row = sizes, text, row
        self.group = text.heads // text.kv_heads  # G
        width = text.heads * text.head_dim
        self.q_proj = convolution(text.hidden_size, width, text.qkv_bias)
        self.k_proj = convolution(text.hidden_size, text.kv_width, text.qkv_bias)
        self.v_proj = convolution(text.hidden_size, text.kv_width, text.qkv_bias)
        self.o_proj = convolution(width, text.hidden_size)
        if sizes.shifts_keys:
            empty = torch.empty(text.kv_heads, text.head_dim, 1, 1, device="meta")
            self.key_shift = nn.Parameter(empty, requires_grad=False)
            self.key_shift_swapped = nn.Parameter(empty.clone(), requires_grad=False)

    def keys(self, x: Tensor, rope: Rope) -> Tensor:  # (1, H, 1, Q) -> (1, kv_heads, D, Q)
        """Returns rotated keys, without their constant part."""
        text, query = self.text, self.sizes.query
        cos, sin, turn = rope
        keys = rotate(self.k_proj(x).reshape(text.kv_heads, text.head_dim, 1, query), cos, sin)
        if self.sizes.shifts_keys:
            keys = keys + (self.key_shift * turn + self.key_shift_swapped * sin)
        return keys.reshape(1, text.kv_heads, text.head_dim, query)

    def write(self, x: Tensor, rope: Rope, cache: Tensor, position: Tensor) -> None:
        """Writes the keys and values of x (1, H, 1, Q) at `position` into the layer's two rows of the state."""
        text, query = self.text, self.sizes.query
        values = self.v_proj(x).reshape(1, text.kv_heads, text.head_dim, query)
        both = torch.cat((self.keys(x, rope), values), 0)
        cache[self.row : self.row + 2, :, :, position : position + query] = both

    def attend(self, x: Tensor, rope: Rope, mask: Tensor, cache: Tensor) -> Tensor:
        """Returns the attention of x (1, H, 1, Q) over the C positions of its layer's rows, projected (1, H, 1, Q)."""
        text, query, group = self.text, self.sizes.query, self.group
        keys, values = cache[self.row], cache[self.row + 1]  # (kv_heads, D, C)
        q = rotate(self.q_proj(x).reshape(text.kv_heads, text.head_dim, group, query), rope[0], rope[1])
        q = q.reshape(text.kv_heads, text.head_dim, group * query)
        scores = torch.matmul(q.transpose(1, 2), keys)  # (kv_heads, G·Q, C)
        weights = self.weights(scores, mask)
        mixed = torch.matmul(values, weights.transpose(1, 2))  # (kv_heads, D, G·Q)
        out: Tensor = self.o_proj(mixed.reshape(1, text.heads * text.head_dim, 1, query))
        return out

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:  # (kv_heads, G·Q, C) -> same
        """Returns the softmax of masked scores; one row needs no axis for Q."""
        exponent = self.sizes.protection.scores
        if self.sizes.query == 1:
            return softmax(scores + mask, exponent)
        shape = (self.text.kv_heads, self.group, self.sizes.query, self.sizes.context)
        return softmax(scores.reshape(shape) + mask, exponent).reshape(shape[0], -1, shape[3])


class AneLayout:
    """Channels first: `export.layout.Layout` for `--target ane`."""

    def __init__(self, sizes: GraphSizes) -> None:
        self.sizes = sizes

    def state(self, rows: int) -> tuple[int, ...]:
        """(rows, kv_heads, D, C)."""
        text = self.sizes.text
        return (rows, text.kv_heads, text.head_dim, self.sizes.context)

    def attention(self, row: int) -> Attention:
        """Attention whose keys are row `row` of the state."""
        return Attention(self.sizes, row)

    def norm(self) -> nn.Module:
        """An RMSNorm of the residual stream (1, H, 1, Q)."""
        text, protection = self.sizes.text, self.sizes.protection
        with torch.device("meta"):
            return BoundedRMSNorm(text.hidden_size, text.rms_norm_eps, protection.residual, safe=protection.safe_forms)

    def linear(self, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
        """A 1×1 convolution, without numbers."""
        return convolution(inputs, outputs, bias)

    def enter(self, embeds: Tensor) -> Tensor:
        """(1, Q, H) -> (1, H, 1, Q), scaled as the residual stream is; one row needs no transpose."""
        query, width = self.sizes.query, self.sizes.text.hidden_size
        x = embeds if query == 1 else embeds.transpose(1, 2)
        x = x.reshape(1, width, 1, query)
        exponent = self.sizes.protection.residual
        return x * 2.0**-exponent if exponent and self.sizes.first else x

    def leave(self, x: Tensor) -> Tensor:
        """(1, width, 1, Q) -> (1, Q, width)."""
        width, query = x.shape[1], self.sizes.query
        return x.reshape(1, 1, width) if query == 1 else x.reshape(1, width, query).transpose(1, 2)

    def rotary(self, cos: Tensor, sin: Tensor) -> Rope:
        """(1, 1, Q, D) twice -> (1, D, 1, Q): cosine, signed sine, and cosine − 1 where keys are shifted."""
        query, head_dim = self.sizes.query, self.sizes.text.head_dim
        if query == 1:
            cos, sin = cos.reshape(1, head_dim, 1, 1), sin.reshape(1, head_dim, 1, 1)
        else:
            cos, sin = cos.permute(0, 3, 1, 2), sin.permute(0, 3, 1, 2)
        signs = torch.ones(1, head_dim, 1, 1)
        signs[:, : head_dim // 2] = -1
        return cos, sin * signs, cos - 1 if self.sizes.shifts_keys else cos

    def mask(self, mask: Tensor) -> Tensor:
        """(1, 1, Q, C) as it is, (1, 1, C) for one row."""
        return mask.reshape(1, 1, self.sizes.context) if self.sizes.query == 1 else mask
