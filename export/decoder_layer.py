"""A decoder layer in either layout: norms, attention and MLP, and the sums between them.

What it is made of comes from its layout (`export.layout`); parameters have the checkpoint's names.
It does not know how tensors lie.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from export.layout import Layout, Rope
from fastvlm_ref.config import TextConfig


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, layout: Layout, text: TextConfig) -> None:
        super().__init__()
        width, inner = text.hidden_size, text.intermediate_size
        self.gate_proj, self.up_proj = layout.linear(width, inner), layout.linear(width, inner)
        self.down_proj = layout.linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with the state written on the way."""

    def __init__(self, layout: Layout, text: TextConfig, row: int) -> None:
        super().__init__()
        self.input_layernorm = layout.norm()
        self.self_attn = layout.attention(row)
        self.post_attention_layernorm = layout.norm()
        self.mlp = MLP(layout, text)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        normed = self.input_layernorm(x)
        self.self_attn.write(normed, rope, cache, position)
        x = x + self.self_attn.attend(normed, rope, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def fill(self, x: Tensor, rope: Rope, cache: Tensor, position: Tensor) -> Tensor:
        """Writes the state and nothing else; returns a value of it (1, 1, 1), so that the write has a reader."""
        self.self_attn.write(self.input_layernorm(x), rope, cache, position)
        return cache[0:1, 0, 0:1, 0:1]

    def drop_all_but_fill(self) -> None:
        """Drops what `fill` does not use."""
        del self.mlp, self.post_attention_layernorm, self.self_attn.q_proj, self.self_attn.o_proj
