"""The decoder: linear layers and layers of one package of its chain, for either target.

What the reference gives, (1, S, width), becomes (1, width, 1, S) for "ane" and stays as it is for "gpu"; the factors
are those of the table in `export.decoder_weights`, written down here a second time so that one holds the other.
A package numbers its layers from 0; `chunk` says which of the decoder's they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from export.chunks import Chunk, HeadSplit
from export.key_shift import k_bias, key_shift
from export.layout import GraphSizes
from fastvlm.build import Build
from fastvlm.errors import BuildError
from fastvlm_ref.model.decoder import Decoder
from validation.counterparts.counterpart import Block, Change, Counterpart
from validation.program.anchors import Anchors

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
MOST_ROWS = 1 << 13  # of a state; no decoder comes near
FILLED = ("self_attn.k_proj", "self_attn.v_proj")  # all that `prefill` keeps of the last layer


@dataclass(frozen=True)
class DecoderPart:
    """One package of a build's language model: which layers it holds, and how its tensors lie.

    sizes: those of the whole decoder (`export.language.whole_sizes`). split: of the head.
    """

    decoder: Decoder
    sizes: GraphSizes
    target: str
    chunk: Chunk
    split: HeadSplit

    @property
    def layers(self) -> range:
        """The decoder's numbers of its layers."""
        return range(self.chunk.first, self.chunk.last)

    def counterparts(self, function: str) -> Iterator[Counterpart]:
        """Gives the counterpart of every linear layer of "prefill" or "decode", in the order of the reference."""
        filling = function == "prefill" and self.chunk.filling
        for number, layer in enumerate(self.layers):
            names = FILLED if filling and layer == self.chunk.last - 1 else (*LINEAR, *MLP)
            for name in names:
                yield self._linear(f"layers.{number}.{name}", layer, name)
        for part in self.chunk.parts if function == "decode" else ():
            parameter = "lm_head" if self.split.count == 1 else f"lm_head.{part}"
            rows = partial(_rows, part * self.split.rows, self.split.rows)
            yield Counterpart(parameter, "decoder.norm", "decoder.lm_head", 0, 0, partial(self._laid, rows))

    def blocks(self, function: str, anchors: Anchors) -> Iterator[Block]:
        """Gives every layer whose result the function computes, and the final norm; Unmatched where one is missing."""
        filling = function == "prefill" and self.chunk.filling
        factor = 2.0**-self.sizes.protection.residual
        for number, layer in enumerate(self.layers[:-1] if filling else self.layers):
            value = anchors.added(f"layers.{number}.mlp.down_proj").name
            yield Block(f"decoder.layers.{layer}", value, partial(self._laid, partial(torch.mul, other=factor)))
        if self.chunk.parts and function == "decode":
            head = "lm_head" if self.split.count == 1 else f"lm_head.{self.chunk.parts[0]}"
            yield Block("decoder.norm", anchors.taken(head).name, partial(self._laid, _same))

    def _linear(self, parameter: str, layer: int, name: str) -> Counterpart:
        """One linear layer; exponents of its input and result as in the table."""
        guard = self.sizes.protection
        takes = {"self_attn.o_proj": guard.values_of(layer), "mlp.down_proj": guard.mlp_of(layer)}.get(name, 0)
        gives = {
            "self_attn.q_proj": guard.scores, "self_attn.v_proj": guard.values_of(layer),
            "self_attn.o_proj": guard.residual, "mlp.up_proj": guard.mlp_of(layer), "mlp.down_proj": guard.residual,
        }.get(name, 0)  # fmt: skip
        change = partial(self._changed, layer, name, 2.0**-gives)
        return Counterpart(parameter, f"decoder.layers.{layer}", f"decoder.layers.{layer}.{name}", takes, gives, change)

    def _changed(self, layer: int, name: str, factor: float, x: Tensor) -> Tensor:
        text = self.sizes.text
        if name == "self_attn.q_proj":
            x = x * text.head_dim**-0.5
            if self.target == "ane":  # (kv_heads, G, D) -> (kv_heads, D, G)
                shape = (*x.shape[:2], text.kv_heads, text.heads // text.kv_heads, text.head_dim)
                x = x.reshape(shape).transpose(3, 4).reshape(x.shape)
        if name == "self_attn.k_proj" and self.sizes.shifts_keys:
            x = x - key_shift(k_bias(self.decoder, layer), text, self.sizes.context).reshape(-1)
        return self._laid(partial(torch.mul, other=factor), x)

    def _laid(self, change: Change, x: Tensor) -> Tensor:
        """(1, S, width), changed, as the target has it."""
        x = change(x)
        return x.transpose(1, 2).unsqueeze(2) if self.target == "ane" else x


def packages_of(build: Build) -> tuple[Chunk, ...]:
    """Returns which layers and which parts of the head each package of a build's language model holds.

    Read from the manifest's states and outputs, by which a host runs the chain; none of a build without one. BuildError
    where a state has no shape.
    """
    if not build.language:
        return ()
    entries = build.manifest["functions"]["language"]
    entries = [entries] if isinstance(entries, dict) else entries
    counts = [_layers(entry["state"]) if "state" in entry else 0 for entry in entries]
    chunks, part = [], 0
    for number, (stage, count) in enumerate(zip(build.language, counts, strict=True), 1):
        first = sum(counts[: number - 1])
        parts = tuple(range(part, part + len(stage.logits)))
        part += len(parts)
        last = first + count
        chunks.append(Chunk(number, len(counts), first, last, parts, first < last == sum(counts)))
    return tuple(chunks)


def _layers(state: Any) -> int:
    """How many layers a manifest's state is of: two rows each."""
    shape = state.get("shape") if isinstance(state, dict) else None
    rows = shape[0] if isinstance(shape, list) and shape else None
    if type(rows) is not int or not 0 < rows <= MOST_ROWS or rows % 2:
        raise BuildError(
            f"functions.language in the manifest has a state of shape {str(shape)[:40]}, expected two rows for each "
            "layer; export the build again"
        )
    return rows // 2


def _rows(first: int, count: int, logits: Tensor) -> Tensor:
    """Rows of the head's result (1, S, V); those behind V are zeros."""
    part = logits[..., first : first + count]
    return torch.nn.functional.pad(part, (0, count - part.shape[-1]))


def _same(x: Tensor) -> Tensor:
    return x
