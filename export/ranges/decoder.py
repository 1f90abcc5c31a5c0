"""The decoder over all prompts, in float32, layer by layer: one layer's weights are in memory at a time.

Tensors are those of the graph that ships, before any exponent: queries carry 1/√D, scores are q·k before mask and
softmax, seen where the causal mask lets a query look, one group of heads at a time. Keys and scores are recorded twice:
as they are, and without the constant part of the keys' biases (`export.key_shift`), as the graph stores them where
such biases are large. Without it a score is less by q·c, the same for a whole row; that is no longer the same at every
place in the context, so both ends of it are looked at.
The head is read piece by piece, and only the last positions of a prompt meet it: no other ever has logits.
It knows no exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from export.key_shift import key_shift
from export.ranges.matrix import HEAD, Table, rows_of
from export.ranges.prompts import Prompt
from export.ranges.result import DECODER
from export.ranges.side_by_side import side_by_side
from export.ranges.watch import Extremes, Look, Tally
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import materialised
from fastvlm_ref.model.decoder import MLP, Attention, Decoder, DecoderLayer, rope_tables, rotate

CONTEXT = 2048  # C for which keys go without their constant part: the one that is exported unless asked
MOST_PROMPTS = 8  # side by side
LAST = 32  # positions of a prompt that meet the head


@torch.no_grad()
def decoder_pass(
    decoder: Decoder, prompts: Sequence[Prompt], table: Table, tally: Tally, progress: Progress = SILENT
) -> None:
    """Adds to `tally` what table, layers, final norm and head give for every prompt; the decoder may stream.

    Raises TensorError where the model gives NaN or infinity.
    """
    tally.add({f"{DECODER}embed_tokens rows": table.extremes}, "the whole table")
    states = [prompt.embeds for prompt in prompts]
    for prompt in prompts:
        look = Look(DECODER)
        look("input", prompt.embeds)
        tally.add(look.found, prompt.name)
    with progress.stage("Scanning the decoder", len(decoder.layers) + 1) as advance:
        for index, layer in enumerate(cast(Sequence[DecoderLayer], decoder.layers)):
            states = _layer_pass(layer, f"{DECODER}layers.{index}", prompts, states, tally)
            advance(1)
        _head_pass(decoder, prompts, states, tally)
        advance(1)


def _layer_pass(
    layer: DecoderLayer, name: str, prompts: Sequence[Prompt], states: Sequence[Tensor], tally: Tally
) -> list[Tensor]:
    """Runs all states through one layer; returns what leaves it."""

    @torch.no_grad()  # of each thread
    def run(x: Tensor) -> tuple[dict[str, Extremes], Tensor]:
        look = Look(name)
        return look.found, watched_layer(layer, x, look)

    after = []
    with materialised(layer):
        for prompt, (found, out) in zip(prompts, side_by_side(run, states, MOST_PROMPTS), strict=True):
            tally.add(found, prompt.name)
            after.append(out)
    return after


def watched_layer(layer: DecoderLayer, x: Tensor, look: Look) -> Tensor:
    """Returns what the layer makes of x (1, S, H), and looks at everything on the way."""
    normed = look(".input_layernorm norm", layer.input_layernorm(x))
    x = look(" add", x + _attention(layer.self_attn, normed, look))
    normed = look(".post_attention_layernorm norm", layer.post_attention_layernorm(x))
    return look(" add.2", x + _mlp(layer.mlp, normed, look))


def _mlp(mlp: MLP, x: Tensor, look: Look) -> Tensor:
    gate = look(".mlp.gate_proj linear", mlp.gate_proj(x))
    up = look(".mlp.up_proj linear", mlp.up_proj(x))
    product = look(".mlp mul", look(".mlp silu", F.silu(gate)) * up)
    return look(".mlp.down_proj linear", mlp.down_proj(product))


def _attention(attention: Attention, x: Tensor, look: Look) -> Tensor:
    """Grouped-query attention of x (1, S, H) over itself."""
    text, length = attention.config, x.shape[1]
    q = look(".self_attn.q_proj linear", attention.q_proj(x) * text.head_dim**-0.5)
    k = look(".self_attn.k_proj linear", attention.k_proj(x))
    v = look(".self_attn.v_proj linear", attention.v_proj(x))
    # (heads, S, D), then twice (kv_heads, S, D)
    q, k, v = (part.view(length, -1, text.head_dim).transpose(0, 1) for part in (q, k, v))
    rope = rope_tables(text, torch.arange(length))
    queries, keys = look(".self_attn queries", rotate(q, *rope)), look(".self_attn keys", rotate(k, *rope))
    common = _look_at_shifted(attention, q, k, look)
    queries = queries.reshape(text.kv_heads, -1, length, text.head_dim)
    mixed = [
        _attend(queries[head], keys[head], v[head], [part[head] for part in common], look)
        for head in range(text.kv_heads)
    ]
    joined = torch.cat(mixed).transpose(0, 1).reshape(1, length, -1)  # (1, S, heads·D)
    return look(".self_attn.o_proj linear", attention.o_proj(look(".self_attn attention", joined)))


def _attend(q: Tensor, k: Tensor, v: Tensor, common: Sequence[Tensor], look: Look) -> Tensor:
    """Returns the attention (G, S, D) of the queries (G, S, D) of one head of keys and values (S, D) each.

    common: what every score of a row is less by where keys go without their constant part, (G, S, 1) each.
    """
    length = len(k)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    scores = torch.matmul(q, k.T)
    seen = len(q) * length * (length + 1) // 2
    look(".self_attn scores", scores * visible, seen)
    for part in common:
        look(".self_attn scores shifted", (scores - part) * visible, seen)
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
    return torch.matmul(look(".self_attn softmax", weights, seen), v)


def _look_at_shifted(attention: Attention, q: Tensor, k: Tensor, look: Look) -> list[Tensor]:
    """Looks at the keys without their constant part c, at both ends of the context; returns q·c there.

    q (heads, S, D) and k (kv_heads, S, D) are not rotated yet; returned is (kv_heads, G, S, 1) for each end, nothing
    for keys without such a part.
    """
    text, length = attention.config, k.shape[1]
    if attention.k_proj.bias is None:
        return []
    constant = key_shift(attention.k_proj.bias, text, CONTEXT)
    if not constant.any():
        return []
    look(".self_attn constant", constant)
    common = []
    for start in dict.fromkeys((0, max(0, CONTEXT - length))):
        rope = rope_tables(text, torch.arange(start, start + length))
        look(".self_attn keys shifted", rotate(k, *rope) - constant[:, None])
        queries = rotate(q, *rope).reshape(text.kv_heads, -1, length, text.head_dim)
        common.append(torch.matmul(queries, constant[:, None, :, None]))
    return common


def _head_pass(decoder: Decoder, prompts: Sequence[Prompt], states: Sequence[Tensor], tally: Tally) -> None:
    """The final norm of all positions, and the logits of the last ones."""
    ends = []
    for prompt, x in zip(prompts, states, strict=True):
        look = Look(DECODER)
        ends.append(look("norm norm", decoder.norm(x))[0, -LAST:])
        tally.add(look.found, prompt.name)
    logits = [Look(DECODER) for _ in prompts]
    rows = torch.cat(ends)
    lengths = [len(end) for end in ends]
    for _, weight in rows_of(decoder, HEAD):
        for look, part in zip(logits, (rows @ weight.T).split(lengths), strict=True):
            look("lm_head linear", part)
    for prompt, look in zip(prompts, logits, strict=True):
        tally.add(look.found, prompt.name)
