"""The language model as the graph that ships: static shapes, one state, host-made angles and mask.

What differs from the reference, all of it exact in real numbers:
- keys and values of all layers live in one buffer (2·layers, kv_heads, C, D) that becomes the Core ML state; a layer
  writes both with one slice_update, because an engine may copy the state at each;
- every step attends over all C positions, the mask hides those that are not yet written;
- grouped-query attention reshapes the queries of a group into rows, (kv_heads, G·Q, D): keys are never repeated;
- 1/√D goes into q_proj;
- RMSNorm as in `export.norms`.
`prefill` needs no head and nothing of the last layer but its keys and values. A package may hold some of the layers or
of the head's rows alone (`export.chunks`).
It knows nothing of Core ML, text or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.chunks import HeadSplit
from export.contract import STATE
from export.norms import RMSNormGraph
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import MLP, Attention, Decoder, DecoderLayer, rotate


def scaled_query(attention: Attention) -> nn.Linear:
    """Returns q_proj with 1/√D folded in: exact for D = 64, rounded once for others."""
    root = attention.config.head_dim**-0.5
    old = attention.q_proj
    with torch.device("meta"):
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
    new.weight = nn.Parameter(old.weight * root, requires_grad=False)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias * root, requires_grad=False)
    return new


class AttentionGraph(nn.Module):
    """Grouped-query attention of Q rows over the C positions of the state."""

    def __init__(self, attention: Attention, query: int, context: int, row: int) -> None:
        super().__init__()
        self.config, self.query, self.context, self.row = attention.config, query, context, row
        self.q_proj, self.k_proj, self.v_proj = scaled_query(attention), attention.k_proj, attention.v_proj
        self.o_proj = attention.o_proj

    def split(self, x: Tensor, heads: int) -> Tensor:  # (1, Q, heads·D) -> (1, heads, Q, D)
        if self.query == 1:  # then both orders are the same bytes, and decode has no transpose
            return x.reshape(1, heads, 1, self.config.head_dim)
        return x.reshape(1, self.query, heads, self.config.head_dim).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:  # (kv_heads, G·Q, D) -> (1, Q, heads·D)
        if self.query > 1:
            x = x.reshape(1, self.config.heads, self.query, self.config.head_dim).transpose(1, 2)
        return x.reshape(1, self.query, self.config.heads * self.config.head_dim)

    def write(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, position: Tensor) -> None:
        """Writes the keys and values of x (1, Q, H) at `position` into the layer's two rows of the state."""
        keys = rotate(self.split(self.k_proj(x), self.config.kv_heads), *rope)
        values = self.split(self.v_proj(x), self.config.kv_heads)
        cache[self.row : self.row + 2, :, position : position + self.query] = torch.cat((keys, values), 0)

    def attend(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: Tensor) -> Tensor:
        """Returns the attention of x (1, Q, H) over the C positions of its layer's rows, projected (1, Q, H)."""
        kv_heads, head_dim = self.config.kv_heads, self.config.head_dim
        group = self.config.heads // kv_heads  # G
        keys, values = cache[self.row], cache[self.row + 1]  # (kv_heads, C, D)
        q = rotate(self.split(self.q_proj(x), self.config.heads), *rope)  # (1, heads, Q, D)
        scores = torch.matmul(q.reshape(kv_heads, group * self.query, head_dim), keys.transpose(1, 2))
        scores = scores.reshape(kv_heads, group, self.query, self.context) + mask  # mask (1, 1, Q, C)
        weights = torch.softmax(scores, -1).reshape(kv_heads, group * self.query, self.context)
        out: Tensor = self.o_proj(self.join(torch.matmul(weights, values)))
        return out


class MLPGraph(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LayerGraph(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with the state written on the way."""

    def __init__(self, layer: DecoderLayer, query: int, context: int, row: int) -> None:
        super().__init__()
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        self.input_layernorm = RMSNormGraph(before.weight, before.eps)
        self.self_attn = AttentionGraph(layer.self_attn, query, context, row)
        self.post_attention_layernorm = RMSNormGraph(after.weight, after.eps)
        self.mlp = MLPGraph(layer.mlp)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        normed = self.input_layernorm(x)
        self.self_attn.write(normed, rope, cache, position)
        x = x + self.self_attn.attend(normed, rope, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def fill(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Tensor, position: Tensor) -> Tensor:
        """Writes the state and nothing else; returns a value of it (1, 1, 1), so that the write has a reader."""
        self.self_attn.write(self.input_layernorm(x), rope, cache, position)
        return cache[0:1, 0, 0:1, 0:1]


def split_head(head: nn.Linear, split: HeadSplit, parts: Sequence[int]) -> nn.ModuleDict:
    """Returns the asked parts of the head, each of `split.rows` rows; rows behind the last of V are zeros."""
    found = {}
    for part in parts:
        rows = head.weight[part * split.rows : (part + 1) * split.rows]
        with torch.device("meta"):
            found[str(part)] = linear = nn.Linear(head.in_features, split.rows, bias=False)
        padded = F.pad(rows, (0, 0, 0, split.rows - len(rows)))
        linear.weight = nn.Parameter(padded, requires_grad=False)
    return nn.ModuleDict(found)


class HeadGraph(nn.Module):
    """The final norm and parts of the head: hidden states (1, 1, H) -> logits (1, 1, rows) of each part."""

    def __init__(self, decoder: Decoder, split: HeadSplit, parts: Sequence[int]) -> None:
        super().__init__()
        self.norm = RMSNormGraph(decoder.norm.weight, decoder.norm.eps) if parts else None
        self.lm_head = decoder.lm_head if parts and split.count == 1 else split_head(decoder.lm_head, split, parts)

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns what each part gives."""
        assert self.norm is not None
        x = self.norm(x)
        heads = self.lm_head.values() if isinstance(self.lm_head, nn.ModuleDict) else (self.lm_head,)
        return tuple(head(x) for head in heads)

    def forward(self, inputs_embeds: Tensor) -> tuple[Tensor, ...]:
        return self.logits(inputs_embeds)


class LanguageGraph(HeadGraph):
    """One function of one package: Q rows at `position` through its layers, over a state of C positions.

    `end` says what comes out: "logits" (1, 1, rows) of each of the head's `parts`, "hidden" states (1, Q, H) for the
    next package, or "done" (1, 1, 1) where the last layer is asked for nothing but its keys and values. Layer l has
    rows 2l and 2l + 1 of the state; `rows`, the first row of each layer and their number, says otherwise for a graph
    that stands for another.
    """

    kvCache: Tensor

    def __init__(
        self, decoder: Decoder, query: int, context: int, *,
        end: str, split: HeadSplit, parts: Sequence[int] = (), rows: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(decoder, split, parts if end == "logits" else ())
        text: TextConfig = decoder.config
        layers = (cast(DecoderLayer, layer) for layer in decoder.layers)
        *firsts, count = range(0, 2 * text.layers + 1, 2) if rows is None else rows
        self.layers = nn.ModuleList(
            LayerGraph(layer, query, context, row) for layer, row in zip(layers, firsts, strict=True)
        )
        self.end = end
        self.register_buffer(STATE, torch.zeros(count, text.kv_heads, context, text.head_dim))

    def forward(  # type: ignore[override]  # a head alone takes nothing but hidden states
        self, inputs_embeds: Tensor, rope_cos: Tensor, rope_sin: Tensor, causal_mask: Tensor, position: Tensor
    ) -> tuple[Tensor, ...]:
        rope, at, x = (rope_cos, rope_sin), position[0], inputs_embeds
        for layer in self.layers[:-1]:
            x = layer(x, rope, causal_mask, self.kvCache, at)
        last = cast(LayerGraph, self.layers[-1])
        if self.end == "done":
            return (last.fill(x, rope, self.kvCache, at),)
        x = last(x, rope, causal_mask, self.kvCache, at)
        return (x,) if self.end == "hidden" else self.logits(x)
