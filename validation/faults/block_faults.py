"""Faults of wiring within a layer or a block: ops and numbers are right, and something reads the wrong value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastvlm_ref.model.decoder import DecoderLayer, rope_tables
from fastvlm_ref.model.kv_cache import KVCache
from validation.faults.bench import Bench
from validation.faults.fault import Fault, fault
from validation.faults.layers import ATTENTION, MIXER, LayerEdit, in_encoder, in_language, residual
from validation.faults.otherwise import attending, instead, interleaved, layer_of, one_further, tiled
from validation.faults.programs import FunctionEdit, result, taken
from validation.host import rope_tables as tables_at

FAULTS: list[Fault] = []
planted = partial(fault, FAULTS, "blocks")


@planted("graph")
def layer_dropped(bench: Bench) -> None:
    """What follows a layer of the decoder reads what goes into it."""
    in_language(bench, lambda layer: layer.function.redirect(layer.left.sum, layer.attended.stream))


@planted("graph")
def encoder_block_dropped(bench: Bench) -> None:
    """What follows an attention block of the encoder reads what goes into it."""

    def change(function: FunctionEdit) -> None:
        last = residual(function, f"{ATTENTION}.convffn.fc2.conv").sum
        function.redirect(last, residual(function, f"{ATTENTION}.token_mixer.proj.conv").stream)

    in_encoder(bench, change)


@planted("graph")
def residual_lost_in_the_decoder(bench: Bench) -> None:
    """Behind the attention of a layer goes on what attention gave, without the stream."""
    in_language(bench, lambda layer: layer.function.redirect(layer.attended.sum, layer.attended.branch))


@planted("graph")
def residual_lost_in_the_encoder(bench: Bench) -> None:
    """Behind the ConvFFN of a block goes on what it gave, without the stream."""

    def change(function: FunctionEdit) -> None:
        added = residual(function, f"{MIXER}.convffn.fc2.conv")
        function.redirect(added.sum, added.branch)

    in_encoder(bench, change)


@planted("graph")
def residual_from_before_attention(bench: Bench) -> None:
    """The MLP of a layer is added to what the stream was before attention."""

    def change(layer: LayerEdit) -> None:
        layer.function.bind(layer.left.op, x=layer.attended.stream, y=layer.left.branch)

    in_language(bench, change)


@planted("graph")
def mlp_reads_the_first_norm(bench: Bench) -> None:
    """The MLP of a layer reads what attention reads."""

    def change(layer: LayerEdit) -> None:
        normed = taken(layer.weighted("self_attn.q_proj"), "x")
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            layer.function.bind(layer.weighted(name), x=normed)

    in_language(bench, change)


@planted("graph")
def gate_and_up_exchanged(bench: Bench) -> None:
    """A layer's MLP is gate(x) · silu(up(x))."""

    def change(layer: LayerEdit) -> None:
        function = layer.function
        gate, up = (result(layer.weighted(f"mlp.{name}_proj")) for name in ("gate", "up"))
        product = function.behind(layer.weighted("mlp.down_proj"), "mul")
        function.bind(product, x=function.add("silu", up, x=up), y=gate)

    in_language(bench, change)


@planted("graph")
def queries_and_keys_exchanged(bench: Bench) -> None:
    """An attention of the encoder compares keys with queries: its scores are transposed."""

    def change(function: FunctionEdit) -> None:
        scores = function.ahead(function.weighted(f"{ATTENTION}.token_mixer.q"), "matmul")
        function.bind(scores, x=taken(scores, "y"), y=taken(scores, "x"))

    in_encoder(bench, change)


@planted("graph")
def keys_and_values_exchanged(bench: Bench) -> None:
    """A layer keeps its values where its keys belong, and the other way round."""

    def change(layer: LayerEdit) -> None:
        both = layer.function.maker(taken(layer.update, "update"))
        layer.function.bind(both, values=(taken(both, "values", 1), taken(both, "values")))

    in_language(bench, change)


@planted("graph")
def cached_keys_one_position_off(bench: Bench) -> None:
    """The keys of a layer are rotated by one position more than its queries."""
    text = bench.model.config.text
    cos, sin = (table.reshape(1, -1, 1, 1) for table in tables_at(1, 1, text.head_dim, text.rope_theta))
    sin[:, : text.head_dim // 2] *= -1

    def change(layer: LayerEdit) -> None:
        function, keys = layer.function, result(layer.keys)
        width = function.shape(keys)[1]
        readers = function.readers(keys)
        first, second = (function.cut(keys, 1, at, at + width // 2) for at in (0, width // 2))
        swapped = function.join((second, first), 1)
        straight = function.add("mul", keys, x=keys, y=cos)
        turned = function.add("add", keys, x=straight, y=function.add("mul", keys, x=swapped, y=sin))
        for reader in readers:
            function.bind(reader, x=turned)

    in_language(bench, change)


@planted("graph")
def rope_with_sine_for_cosine(bench: Bench) -> None:
    """The angles' cosine and sine are exchanged on their way in."""
    with bench.language() as program:
        for function in program.functions.values():
            readers = [(op, name) for name in ("ropeCos", "ropeSin") for op in function.readers(name)]
            for op, name in readers:
                function.bind(op, x={"ropeCos": "ropeSin", "ropeSin": "ropeCos"}[name])


@planted("graph")
def mask_hides_the_own_position(bench: Bench) -> None:
    """The mask is one position off: no row sees itself."""
    _shift_mask(bench, lambda context: ((1, context), (context - 1, context)))


@planted("graph")
def mask_shows_the_next_position(bench: Bench) -> None:
    """The mask is one position off: every row sees one that comes after it."""
    _shift_mask(bench, lambda context: ((0, 1), (0, context - 1)))


@planted("graph")
def cache_read_before_it_is_written(bench: Bench) -> None:
    """A layer reads the state as it was before its own keys and values: the row of each position is stale."""

    def change(layer: LayerEdit) -> None:
        for read in layer.reads:
            layer.function.bind(read, x=taken(layer.update, "x"))

    in_language(bench, change)


@planted("graph")
def cache_never_written(bench: Bench) -> None:
    """The keys and values of a layer never reach the state."""

    def change(layer: LayerEdit) -> None:
        (write,) = (op for op in layer.function.readers(result(layer.update)) if op.type == "write_state")
        layer.function.bind(write, data=taken(layer.update, "x"))

    in_language(bench, change)


@planted("graph")
def cache_written_one_position_late(bench: Bench) -> None:
    """A layer keeps the keys and values of a position at the next one."""

    def change(layer: LayerEdit) -> None:
        function = layer.function
        for bound in (function.maker(taken(layer.update, end)) for end in ("begin", "end")):
            *others, place = (argument.name for argument in bound.inputs["values"].arguments)
            later = function.add("add", place, x=place, y=np.array([1], np.int32))
            function.bind(bound, values=(*others, later))

    in_language(bench, change)


@planted("graph")
def layer_writes_its_neighbour_s_rows(bench: Bench) -> None:
    """A layer keeps its keys and values in the rows of the one after it."""

    def change(layer: LayerEdit) -> None:
        function = layer.function
        for bound in (function.maker(taken(layer.update, end)) for end in ("begin", "end")):
            row, *others = (argument.name for argument in bound.inputs["values"].arguments)
            number = function.constant(function.value(row) + np.int32(2))
            function.bind(bound, values=(number, *others))

    in_language(bench, change)


@planted("graph")
def layer_reads_its_neighbour_s_rows(bench: Bench) -> None:
    """A layer attends to the keys and values of the one before it."""

    def change(layer: LayerEdit) -> None:
        for read in layer.reads:
            back = np.array([2, 0, 0, 0], np.int32)
            bounds = {end: layer.function.numbers(read, end) - back for end in ("begin", "end")}
            layer.function.bind(read, **bounds)

    in_language(bench, change)


@planted("graph")
def final_norm_skipped(bench: Bench) -> None:
    """The head reads the last layer's result without the final norm."""
    with bench.language() as program:
        function = program.functions["decode"]
        last = LayerEdit(function, bench.model.config.text.layers - 1)
        function.bind(function.weighted("lm_head"), x=last.left.sum)


def _shift_mask(bench: Bench, parts: Callable[[int], tuple[tuple[int, int], ...]]) -> None:
    """Puts the mask together from parts of itself along C, before anything reads it."""
    with bench.language() as program:
        for function in program.functions.values():
            readers, context = function.readers("causalMask"), function.shape("causalMask")[3]
            shifted = function.join([function.cut("causalMask", 3, *bounds) for bounds in parts(context)], 3)
            for reader in readers:
                name = next(name for name in reader.inputs if taken(reader, name) == "causalMask")
                function.bind(reader, **{name: shifted})


@planted("reference")
def layer_of_the_reference_dropped(bench: Bench) -> None:
    """A layer of the reference gives back what it takes."""

    def forward(layer: DecoderLayer, x: Tensor, *rest: Any) -> Tensor:
        DecoderLayer.forward(layer, x, *rest)  # its keys and values are kept all the same
        return x

    instead(layer_of(bench), forward)


@planted("reference")
def layer_of_the_reference_twice(bench: Bench) -> None:
    """A layer of the reference runs twice."""
    once = DecoderLayer.forward

    def forward(layer: DecoderLayer, x: Tensor, *rest: Any) -> Tensor:
        return once(layer, once(layer, x, *rest), *rest)

    instead(layer_of(bench), forward)


@planted("reference")
def norm_before_the_mlp_skipped(bench: Bench) -> None:
    """A layer of the reference gives its MLP the stream as it is."""

    def forward(
        layer: DecoderLayer, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache | None, number: int
    ) -> Tensor:
        x = x + layer.self_attn(layer.input_layernorm(x), rope, mask, cache, number)
        return x + cast(Tensor, layer.mlp(x))

    instead(layer_of(bench), forward)


@planted("reference")
def keys_of_the_reference_one_position_off(bench: Bench) -> None:
    """The keys of a layer of the reference are rotated by one position more than its queries."""
    cos, sin = rope_tables(bench.model.config.text, torch.tensor([1]))
    attending(bench, turn_keys=one_further((cos, sin)))


@planted("reference")
def rope_of_neighbouring_channels(bench: Bench) -> None:
    """A layer of the reference rotates pairs of neighbouring channels, as GPT-J does."""
    attending(bench, turn=interleaved)


@planted("reference")
def groups_of_heads_in_another_order(bench: Bench) -> None:
    """A layer of the reference deals keys out to query heads in turns."""
    attending(bench, spread=tiled)


@planted("reference")
def reference_without_root_of_the_width(bench: Bench) -> None:
    """The scores of a layer of the reference are not divided by √D."""
    attending(bench, scale=1.0)


@planted("reference")
def mask_of_the_reference_shows_the_next_position(bench: Bench) -> None:
    """Each row of a layer of the reference sees the one after it."""
    attending(bench, masked=lambda mask: mask | torch.nn.functional.pad(mask, (1, 0))[:, :-1])
