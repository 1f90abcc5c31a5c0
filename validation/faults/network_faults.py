"""Faults between the parts: what goes into the encoder, how its tokens are handed on, what the head's rows mean."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvithd import FastViTHD
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.kv_cache import KVCache
from validation.faults.bench import Bench
from validation.faults.fault import Fault, fault
from validation.faults.layers import in_encoder
from validation.faults.otherwise import attending, instead
from validation.faults.programs import FunctionEdit, result, taken
from validation.mil.schema import proto

FAULTS: list[Fault] = []
planted = partial(fault, FAULTS, "network")


@planted("graph")
def pixels_by_256(bench: Bench) -> None:
    """The encoder takes bytes / 256 for bytes / 255."""

    def change(function: FunctionEdit) -> None:
        (scaling,) = function.readers("image")
        function.bind(scaling, y=np.array(1 / 256, np.float32))

    in_encoder(bench, change)


@planted("graph")
def mean_taken_from_the_picture(bench: Bench) -> None:
    """The encoder takes 0.5 from every pixel, as towers do that were trained so."""

    def change(function: FunctionEdit) -> None:
        pixels = taken(function.weighted("patch_embed.0.conv"), "x")
        centred = function.add("sub", pixels, x=pixels, y=np.array(0.5, np.float16))
        function.bind(function.weighted("patch_embed.0.conv"), x=centred)

    in_encoder(bench, change)


@planted("graph")
def blue_first(bench: Bench) -> None:
    """The encoder declares that its picture comes as BGR."""
    with bench.encoder() as program:
        for described in program.spec.description.functions:
            described.input[0].type.imageType.colorSpace = proto("FeatureTypes").ImageFeatureType.BGR


@planted("graph")
def image_tokens_by_columns(bench: Bench) -> None:
    """The encoder hands its tokens out column by column."""

    def change(function: FunctionEdit) -> None:
        tokens = result(function.weighted("projector_2"))
        readers = function.readers(tokens)
        turned = function.add("transpose", tokens, x=tokens, perm=np.array([0, 1, 3, 2], np.int32))
        for reader in readers:
            function.bind(reader, x=turned)

    in_encoder(bench, change)


@planted("graph")
def head_one_row_off(bench: Bench) -> None:
    """Every logit stands where that of the token after it belongs."""
    with bench.language() as program:
        function = program.functions["decode"]
        logits = result(function.weighted("lm_head"))
        readers, rows = function.readers(logits), function.shape(logits)[1]
        shifted = function.join([function.cut(logits, 1, rows - 1, rows), function.cut(logits, 1, 0, rows - 1)], 1)
        for reader in readers:
            function.bind(reader, x=shifted)


@planted("graph")
def every_chunk_at_the_start(bench: Bench) -> None:
    """`prefill` writes each of its chunks at position 0: short prompts are right, those of two chunks are not."""
    with bench.language() as program:
        function = program.functions["prefill"]
        for reader in function.readers("position"):
            function.bind(reader, x=np.array([0], np.int32))


@planted("reference")
def pixels_of_the_reference_by_256(bench: Bench) -> None:
    """The reference's encoder is given bytes / 256."""

    def forward(tower: FastViTHD, pixels: Tensor) -> Tensor:
        return FastViTHD.forward(tower, pixels * (255 / 256))

    instead(bench.model.vision_encoder, forward)


@planted("reference")
def image_tokens_of_the_reference_by_columns(bench: Bench) -> None:
    """The reference hands its image tokens on column by column."""

    def encode_image(model: FastVLM, pixels: Tensor) -> Tensor:
        tokens = FastVLM.encode_image(model, pixels)
        side = round(tokens.shape[1] ** 0.5)
        turned: Tensor = tokens.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
        return turned

    instead(bench.model, encode_image, "encode_image")


@planted("reference")
def embeddings_times_root_of_the_width(bench: Bench) -> None:
    """The reference multiplies what goes into its decoder by √H, as Gemma does."""

    def forward(decoder: Decoder, embeds: Tensor, cache: KVCache | None = None) -> Tensor:
        return Decoder.forward(decoder, embeds * decoder.config.hidden_size**0.5, cache)

    instead(bench.model.decoder, forward)


@planted("reference")
def head_of_the_reference_one_row_off(bench: Bench) -> None:
    """Every logit of the reference stands where that of the token after it belongs."""

    def head(decoder: Decoder, hidden: Tensor) -> Tensor:
        return Decoder.head(decoder, hidden).roll(1, -1)

    instead(bench.model.decoder, head, "head")


@planted("reference")
def reference_reads_another_layer_s_cache(bench: Bench) -> None:
    """A layer of the reference attends to what the layer before it has kept: only where there is a cache."""
    attending(bench, reads=-1)
