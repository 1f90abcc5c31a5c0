"""Stand-ins: a graph is converted with one number per weight, and with small numbers for its widest sizes.

What coremltools does with a graph takes time and memory by its weights (each is cast, compared and copied several
times) and by its layers. None of that changes which ops come out. So the decoder is converted with weights that hold
one value and take no memory, with at most four layers (`export.repeat` makes the others), and with small primes in
place of the vocabulary, the context, the MLP's width and every place in the state. A prime that occurs nowhere else
marks where the real number belongs. The weights themselves go from the checkpoint into the weight file
(`export.parameters`). It knows protobufs, not what ops mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from export.repeat import CONVERTED, REPEATED, replace_integers
from fastvlm_ref.config import TextConfig

VALUE = 0.015625  # not 0, not 1: those could be left out as having no effect
VALUES = 1024  # as many numbers from VALUE to twice that fp16 tells apart
FIRST_PRIME = 71  # the stand-in of the state is a tensor in memory: its lengths are small


@dataclass(frozen=True)
class StandIn:
    """A small decoder in place of the real one: its config and context, and which number stands for which.

    rows: where in the state each layer's two rows begin, then how many rows there are. marked: the one of them whose
    numbers stay, because they belong to the layer that is repeated; None where no layer is.
    """

    text: TextConfig
    context: int  # C
    rows: tuple[int, ...]
    real: Mapping[int, int]
    marked: int | None


def stand_in(text: TextConfig, query: int, context: int) -> StandIn:
    """Returns a decoder of the same ops as that of `text`, for functions of `query` rows and `context` positions."""
    primes = _free_primes(text, query, context)
    vocabulary, middle, positions = (next(primes) for _ in range(3))
    layers = min(text.layers, CONVERTED)
    rows = tuple(next(primes) for _ in range(layers + 1))
    real = {vocabulary: text.vocab_size, middle: text.intermediate_size, positions: context, rows[-1]: 2 * text.layers}
    marked = rows[REPEATED] if text.layers > CONVERTED else None
    for layer, row in enumerate(rows[:-1]):
        place = 2 * (text.layers - 1 if layer == layers - 1 else layer)
        real |= {} if row == marked else {row + part: place + part for part in range(3)}
    small = replace(text, layers=layers, vocab_size=vocabulary, intermediate_size=middle, tied_head=False)
    return StandIn(small, positions, rows, real, marked)


def _free_primes(text: TextConfig, query: int, context: int) -> Iterator[int]:
    """Primes at least three apart that are no length of the program, nor double or half of one."""
    heads, group = text.heads * text.head_dim, text.heads // text.kv_heads
    lengths = (
        text.hidden_size, heads, text.kv_width, text.head_dim, query * group, query, text.heads, text.kv_heads,
        text.vocab_size, text.intermediate_size, context, 2 * text.layers,
    )  # fmt: skip
    taken = {part for length in lengths for part in (length, 2 * length, length // 2)}
    last = 0
    for prime in primes(max(FIRST_PRIME, 2 * text.layers + 3)):
        if prime - last > 2 and not taken & {prime, prime + 1, prime + 2}:
            last = prime
            yield prime


def primes(start: int) -> Iterator[int]:
    """Gives the primes from `start` on."""
    number = start
    while True:
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            yield number
        number += 1


def without_weights(graph: nn.Module, shape_of: Callable[[str, tuple[int, ...]], tuple[int, ...]] | None = None) -> Any:
    """Returns a copy of a graph, on any device, whose parameters hold one value each and take no memory.

    Each holds a value of its own: an op on the same input with an equal constant would be taken for the same op, and
    one layer then read what belongs to another. `shape_of` gives a parameter, by name and shape, another shape.
    Buffers become zeros.
    """
    known = {}
    for index, (name, parameter) in enumerate(graph.named_parameters(remove_duplicate=False)):
        shape = tuple(parameter.shape) if shape_of is None else shape_of(name, tuple(parameter.shape))
        value = torch.full((), VALUE * (1 + index % VALUES / VALUES))
        known[id(parameter)] = nn.Parameter(value.expand(shape), requires_grad=False)
    buffers = {id(buffer): torch.zeros(buffer.shape) for buffer in graph.buffers()}
    return copy.deepcopy(graph, {**known, **buffers})


def restore_sizes(function: Any, description: Any, real: Mapping[int, int]) -> None:
    """Puts the real sizes in place of the stand-ins: into every declared shape and every stored integer."""
    types = [feature.type for feature in function.inputs]
    for block in function.block_specializations.values():
        for op in block.operations:
            types += [output.type for output in op.outputs]
            for value in op.attributes.values():
                types.append(value.type)
                replace_integers(value, real)
    for kind in types:
        _restore_type(kind, real)
    for feature in (*description.input, *description.output, *description.state):
        _restore_feature(feature.type, real)


def _restore_feature(kind: Any, real: Mapping[int, int]) -> None:
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        image.height, image.width = (real.get(length, length) for length in (image.height, image.width))
        return
    holder = kind.stateType.arrayType if kind.WhichOneof("Type") == "stateType" else kind.multiArrayType
    holder.shape[:] = [real.get(length, length) for length in holder.shape]


def _restore_type(kind: Any, real: Mapping[int, int]) -> None:
    which = kind.WhichOneof("type")
    if which == "stateType":
        _restore_type(kind.stateType.wrappedType, real)
    elif which == "tensorType":
        for dimension in kind.tensorType.dimensions:
            dimension.constant.size = real.get(dimension.constant.size, dimension.constant.size)
