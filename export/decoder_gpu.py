"""The decoder as a GPU likes it: rows of features, (1, Q, H), with linear layers and one large matmul for each product.

Notable choices:
- keys and values of all layers are one state (2·layers, kv_heads, C, D), both written with one slice_update a layer;
- grouped-query attention reshapes the queries of a group into rows, (kv_heads, G·Q, D): keys are never repeated;
- RMSNorm is one `layer_norm` op (`export.norms`), whose sums a GPU makes in float32.
It knows nothing of Core ML.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export import layout
from export.layout import GraphSizes, Rope
from export.nonlinear import softmax
from export.norms import RMSNormGraph
from fastvlm_ref.model.decoder import rotate


def projection(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """Returns a linear layer without numbers."""
    with torch.device("meta"):
        return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


class Attention(layout.Attention):
    """Grouped-query attention of Q rows over the C positions of the state."""

    def __init__(self, sizes: GraphSizes, row: int) -> None:
        super().__init__()
        text = sizes.text
        self.sizes, self.text, self.row = sizes, text, row
        width = text.heads * text.head_dim
        self.q_proj = projection(text.hidden_size, width, text.qkv_bias)
        self.k_proj = projection(text.hidden_size, text.kv_width, text.qkv_bias)
        self.v_proj = projection(text.hidden_size, text.kv_width, text.qkv_bias)
        self.o_proj = projection(width, text.hidden_size)
        if sizes.shifts_keys:
            empty = torch.empty(1, text.kv_heads, 1, text.head_dim, device="meta")
            self.key_shift = nn.Parameter(empty, requires_grad=False)
            self.key_shift_swapped = nn.Parameter(empty.clone(), requires_grad=False)

    def split(self, x: Tensor, heads: int) -> Tensor:  # (1, Q, heads·D) -> (1, heads, Q, D)
        """Returns heads apart."""
        if self.sizes.query == 1:  # then both orders are the same bytes, and decode has no transpose
            return x.reshape(1, heads, 1, self.text.head_dim)
        return x.reshape(1, self.sizes.query, heads, self.text.head_dim).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:  # (kv_heads, G·Q, D) -> (1, Q, heads·D)
        """Returns heads side by side."""
        if self.sizes.query > 1:
            x = x.reshape(1, self.text.heads, self.sizes.query, self.text.head_dim).transpose(1, 2)
        return x.reshape(1, self.sizes.query, self.text.heads * self.text.head_dim)

    def write(self, x: Tensor, rope: Rope, cache: Tensor, position: Tensor) -> None:
        """Writes the keys and values of x (1, Q, H) at `position` into the layer's two rows of the state."""
        cos, sin, turn, signed = rope
        keys = rotate(self.split(self.k_proj(x), self.text.kv_heads), cos, sin)
        if self.sizes.shifts_keys:
            keys = keys + (self.key_shift * turn + self.key_shift_swapped * signed)
        values = self.split(self.v_proj(x), self.text.kv_heads)
        cache[self.row : self.row + 2, :, position : position + self.sizes.query] = torch.cat((keys, values), 0)

    def attend(self, x: Tensor, rope: Rope, mask: Tensor, cache: Tensor) -> Tensor:
        """Returns the attention of x (1, Q, H) over the C positions of its layer's rows, projected (1, Q, H)."""
        kv_heads, head_dim, query = self.text.kv_heads, self.text.head_dim, self.sizes.query
        group = self.text.heads // kv_heads  # G
        keys, values = cache[self.row], cache[self.row + 1]  # (kv_heads, C, D)
        q = rotate(self.split(self.q_proj(x), self.text.heads), rope[0], rope[1])  # (1, heads, Q, D)
        scores = torch.matmul(q.reshape(kv_heads, group * query, head_dim), keys.transpose(1, 2))
        scores = scores.reshape(kv_heads, group, query, self.sizes.context) + mask  # mask (1, 1, Q, C)
        weights = softmax(scores, self.sizes.protection.scores)
        weights = weights.reshape(kv_heads, group * query, self.sizes.context)
        out: Tensor = self.o_proj(self.join(torch.matmul(weights, values)))
        return out


class GpuLayout:
    """Rows of features: `export.layout.Layout` for `--target gpu`."""

    def __init__(self, sizes: GraphSizes) -> None:
        self.sizes = sizes

    def state(self, rows: int) -> tuple[int, ...]:
        """(rows, kv_heads, C, D)."""
        text = self.sizes.text
        return (rows, text.kv_heads, self.sizes.context, text.head_dim)

    def attention(self, row: int) -> Attention:
        """Attention whose keys are row `row` of the state."""
        return Attention(self.sizes, row)

    def norm(self) -> nn.Module:
        """An RMSNorm of the residual stream (1, Q, H)."""
        text = self.sizes.text
        with torch.device("meta"):
            return RMSNormGraph(text.hidden_size, text.rms_norm_eps, self.sizes.protection.residual)

    def linear(self, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
        """A linear layer, without numbers."""
        return projection(inputs, outputs, bias)

    def enter(self, embeds: Tensor) -> Tensor:
        """(1, Q, H), scaled as the residual stream is."""
        exponent = self.sizes.protection.residual
        return embeds * 2.0**-exponent if exponent and self.sizes.first else embeds

    def leave(self, x: Tensor) -> Tensor:
        """(1, Q, width) as it is."""
        return x

    def rotary(self, cos: Tensor, sin: Tensor) -> Rope:
        """(1, 1, Q, D): cosine, sine; where keys are shifted also cosine − 1 and the sine with signs."""
        if not self.sizes.shifts_keys:
            return cos, sin, cos, sin
        # not written into a tensor of ones: coremltools takes `[..., :half] = -1` for all of it
        half = torch.ones(1, 1, 1, self.sizes.text.head_dim // 2)
        return cos, sin, cos - 1, sin * torch.cat((-half, half), -1)

    def mask(self, mask: Tensor) -> Tensor:
        """(1, 1, Q, C) as it is."""
        return mask
