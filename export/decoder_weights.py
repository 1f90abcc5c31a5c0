"""What numbers belong into the decoder's graph: the checkpoint's tensors, and everything that is folded into them.

Declared here once, for streaming into weight files, for running a graph, and for whoever audits a package:

| parameter | is the checkpoint's | times | order |
|---|---|---|---|
| `q_proj` | `q_proj` | 2^−scores / √D | ane: rows (kv_heads, G, D) become (kv_heads, D, G) |
| `k_proj.bias` | `k_proj.bias` without its constant part | | |
| `key_shift`, `key_shift_swapped` | the constant part of `k_proj.bias` (`export.key_shift`) | | swapped: halves of D |
| `v_proj` | `v_proj` | 2^−values | |
| `o_proj` | `o_proj` | 2^(values − residual) | ane: columns as the rows of `q_proj` |
| `up_proj` | `up_proj` | 2^−mlp | |
| `down_proj` | `down_proj` | 2^(mlp − residual) | |
| norms | the gain | | gpu: twice, for x and −x |

All factors but 1/√D for a D that is no power of 4 are exact. Everything is done on pieces, as they come from a file.
It knows nothing of Core ML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from export.key_shift import key_shift, swapped
from export.layout import GraphSizes
from export.parameters import GraphWeight, head_weight
from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import Decoder

ANE = "ane"
Pieces = Callable[[], Iterator[Tensor]]


def decoder_weight(decoder: Decoder, name: str, sizes: GraphSizes, target: str) -> GraphWeight:
    """Returns the parameter `name` of the decoder's graph, numbered as in the checkpoint, for layers and final norm.

    `sizes` are the whole decoder's: its protection and context decide what is folded.
    """
    made = _attention_weight(decoder, name, sizes, target) if ".self_attn." in name else None
    if made is None:
        made = _other_weight(decoder, name, sizes, target)
    return as_convolution(made) if target == ANE else made


def head_part(decoder: Decoder, part: int, rows: int, target: str) -> GraphWeight:
    """Returns part `part` of a head that is split into parts of `rows` rows."""
    weight = head_weight(decoder, part, rows)
    return as_convolution(weight) if target == ANE else weight


def as_convolution(weight: GraphWeight) -> GraphWeight:
    """Returns a weight as a channels-first graph has it: matrices as 1×1 kernels, gains along the channels."""
    if len(weight.shape) == 2:
        return replace(weight, shape=(*weight.shape, 1, 1))
    return replace(weight, shape=(1, *weight.shape, 1, 1)) if weight.name.endswith("norm.weight") else weight


def _other_weight(decoder: Decoder, name: str, sizes: GraphSizes, target: str) -> GraphWeight:
    """Norms, MLP and a head in one piece."""
    shape, pieces = stored(decoder, name)
    title, layer, protection = f"decoder.{name}", _layer(name), sizes.protection
    if name.endswith("norm.weight") and target != ANE:
        return GraphWeight(title, (2 * shape[0],), lambda: (piece.float() for _ in range(2) for piece in pieces()))
    power = 0
    if ".up_proj." in name:
        power = -protection.mlp_of(layer)
    elif ".down_proj." in name:
        power = protection.mlp_of(layer) - protection.residual
    return GraphWeight(title, shape, _times(pieces, 2.0**power))


def _attention_weight(decoder: Decoder, name: str, sizes: GraphSizes, target: str) -> GraphWeight | None:
    """What of attention is not the checkpoint's tensor as it is."""
    prefix, _, leaf = name.partition(".self_attn.")
    text, protection, title = sizes.text, sizes.protection, f"decoder.{name}"
    if leaf.startswith("key_shift"):
        return _shift(decoder, f"{prefix}.self_attn.k_proj.bias", title, sizes, target)
    shape, pieces = stored(decoder, name)
    if leaf == "k_proj.bias" and sizes.shifts_keys:
        return GraphWeight(title, shape, lambda: iter([_without_shift(_whole(pieces), sizes)]))
    values = protection.values_of(_layer(name))
    if leaf.startswith("q_proj."):
        scaled = _times(pieces, text.head_dim**-0.5 * 2.0**-protection.scores)
        return GraphWeight(title, shape, _regrouped_rows(scaled, shape, text) if target == ANE else scaled)
    if leaf.startswith("v_proj."):
        return GraphWeight(title, shape, _times(pieces, 2.0**-values))
    if leaf == "o_proj.weight":
        scaled = _times(pieces, 2.0 ** (values - protection.residual))
        if target != ANE:
            return GraphWeight(title, shape, scaled)
        order = regrouped(torch.arange(shape[1]), text.heads // text.kv_heads, text.head_dim)
        return GraphWeight(title, shape, lambda: _reordered(scaled(), order), columns=order)
    return None


def regrouped(x: Tensor, group: int, head_dim: int) -> Tensor:
    """Returns x with its first axis, any number of (G, D), in the order (D, G): queries of a group side by side."""
    return x.reshape(-1, group, head_dim, prod(x.shape[1:])).transpose(1, 2).reshape(x.shape)


def _regrouped_rows(pieces: Pieces, shape: tuple[int, ...], text: TextConfig) -> Pieces:
    """q_proj's rows, or its bias, in the graph's order; those of one head of keys at a time."""
    size, width = prod(shape) // text.kv_heads, prod(shape[1:])

    def values() -> Iterator[Tensor]:
        for block in blocks_of(pieces(), size):
            yield regrouped(block.view(-1, width), text.heads // text.kv_heads, text.head_dim).reshape(-1)

    return values


def _reordered(pieces: Iterable[Tensor], order: Tensor) -> Iterator[Tensor]:
    """Rows of len(order) columns, with their columns in `order`, some rows at a time."""
    rows = max(1, (1 << 20) // len(order))
    for block in blocks_of(pieces, rows * len(order)):
        yield block.view(-1, len(order))[:, order].reshape(-1)


def blocks_of(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Returns flat float32 blocks of `size` values, the last one perhaps shorter, of flat pieces of any length."""
    held: list[Tensor] = []
    count = 0
    for piece in pieces:
        held.append(piece.float().reshape(-1))
        count += piece.numel()
        if count >= size:
            *blocks, rest = torch.cat(held).split(size)
            if rest.numel() == size:
                blocks, rest = [*blocks, rest], rest[:0]
            yield from blocks
            held, count = [rest], rest.numel()
    if count:
        yield torch.cat(held)


def _shift(decoder: Decoder, bias: str, title: str, sizes: GraphSizes, target: str) -> GraphWeight:
    """The part of k_proj's bias that keys go without, as the layout has heads, or that with swapped halves."""
    text = sizes.text
    _, pieces = stored(decoder, bias)
    shape = (text.kv_heads, text.head_dim, 1, 1) if target == ANE else (1, text.kv_heads, 1, text.head_dim)

    def values() -> Iterator[Tensor]:
        shift = key_shift(_whole(pieces), text, sizes.context)
        yield (swapped(shift) if title.endswith("swapped") else shift).reshape(-1)

    return GraphWeight(title, shape, values)


def _without_shift(bias: Tensor, sizes: GraphSizes) -> Tensor:
    return bias - key_shift(bias, sizes.text, sizes.context).reshape(-1)


def _times(pieces: Pieces, factor: float) -> Pieces:
    if factor == 1:
        return lambda: (piece.float() for piece in pieces())
    return lambda: (piece.float() * factor for piece in pieces())


def _whole(pieces: Pieces) -> Tensor:
    return torch.cat([piece.float().reshape(-1) for piece in pieces()])


def _layer(name: str) -> int:
    """The number of a parameter's layer, −1 for one that is in none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1
