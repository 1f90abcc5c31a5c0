"""The language model as the graph that ships: static shapes, one state, host-made angles and mask.

What differs from the reference, all of it exact in real numbers:
- keys and values of all layers live in one buffer that becomes the Core ML state, written once a layer;
- every step attends over all C positions, the mask hides those that are not yet written;
- 1/√D goes into q_proj, what a protection asks for into the weights beside it (`export.decoder_weights`);
- keys go without the constant part of their bias (`export.key_shift`), norms as in `export.norms`.
`prefill` needs no head and nothing of the last layer but its keys and values. A package may hold some of the layers or
of the head's rows alone (`export.chunks`). How the tensors lie is the target's business (`export.layout`).
A graph has no numbers: `filled` puts them in for those who run it, an export streams them into the weight file.
It knows nothing of Core ML, text or images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from export.chunks import HeadSplit
from export.contract import STATE
from export.decoder_ane import AneLayout
from export.decoder_gpu import GpuLayout
from export.decoder_layer import Layer
from export.layout import GraphSizes, Layout
from export.parameters import GraphWeight

LAYOUTS: dict[str, Callable[[GraphSizes], Layout]] = {"ane": AneLayout, "gpu": GpuLayout}

Graph = TypeVar("Graph", bound=nn.Module)


class HeadGraph(nn.Module):
    """The final norm and parts of the head: hidden states (1, 1, H) -> logits (1, 1, rows) of each part.

    Parameters are named as the checkpoint names them; the parts of a head that is split are `lm_head.<part>`.
    """

    def __init__(self, layout: Layout, width: int, split: HeadSplit, parts: Sequence[int]) -> None:
        super().__init__()
        self.layout = layout
        self.norm = layout.norm() if parts else None
        heads = {str(part): layout.linear(width, split.rows) for part in parts}
        self.lm_head = heads["0"] if heads and split.count == 1 else nn.ModuleDict(heads)

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns what each part gives."""
        assert self.norm is not None
        x = self.norm(x)
        heads = self.lm_head.values() if isinstance(self.lm_head, nn.ModuleDict) else (self.lm_head,)
        return tuple(self.layout.leave(head(x)) for head in heads)

    def forward(self, inputs_embeds: Tensor) -> tuple[Tensor, ...]:
        return self.logits(self.layout.enter(inputs_embeds))


class LanguageGraph(HeadGraph):
    """One function of one package: Q rows at `position` through its layers, over a state of C positions.

    `end` says what comes out: "logits" (1, 1, rows) of each of the head's `parts`, "hidden" states (1, Q, H) for the
    next package, or "done" (1, 1, 1) where the last layer is asked for nothing but its keys and values. Layer l has
    rows 2l and 2l + 1 of the state; `rows`, the first row of each layer and their number, says otherwise for a graph
    that stands for another.
    """

    kvCache: Tensor

    def __init__(
        self, layout: Layout, sizes: GraphSizes, *,
        end: str, split: HeadSplit, parts: Sequence[int] = (), rows: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(layout, sizes.text.hidden_size, split, parts if end == "logits" else ())
        *firsts, count = range(0, 2 * sizes.text.layers + 1, 2) if rows is None else rows
        layers = [Layer(layout, sizes.text, row) for row in firsts]
        if end == "done":
            layers[-1].drop_all_but_fill()
        self.layers = nn.ModuleList(layers)
        self.end = end
        self.register_buffer(STATE, torch.zeros(layout.state(count)))

    def forward(  # type: ignore[override]  # a head alone takes nothing but hidden states
        self, inputs_embeds: Tensor, rope_cos: Tensor, rope_sin: Tensor, causal_mask: Tensor, position: Tensor
    ) -> tuple[Tensor, ...]:
        """inputs_embeds (1, Q, H), tables, mask, position (1,) as docs/host-contract.md says -> what this end gives."""
        rope, mask = self.layout.rotary(rope_cos, rope_sin), self.layout.mask(causal_mask)
        at, x = position[0], self.layout.enter(inputs_embeds)
        for layer in self.layers[:-1]:
            x = layer(x, rope, mask, self.kvCache, at)
        last = cast(Layer, self.layers[-1])
        if self.end == "done":
            return (last.fill(x, rope, self.kvCache, at),)
        x = last(x, rope, mask, self.kvCache, at)
        return (self.layout.leave(x),) if self.end == "hidden" else self.logits(x)


def filled(graph: Graph, weight_of: Callable[[str], GraphWeight]) -> Graph:
    """Returns the graph, in place, with float32 numbers in its parameters: those of `weight_of(name)`."""
    for name, parameter in list(graph.named_parameters()):
        weight = weight_of(name)
        assert weight.shape == tuple(parameter.shape), name
        value = torch.cat([piece.float().reshape(-1) for piece in weight.pieces()]).reshape(weight.shape)
        place, _, leaf = name.rpartition(".")
        setattr(graph.get_submodule(place), leaf, nn.Parameter(value, requires_grad=False))
    return graph
