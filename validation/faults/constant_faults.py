"""Faults of single numbers: weights, gains, scales, eps, rows of a table, fields of the manifest.

Most are too small for any output to show. They are what the audit of every constant is for.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import nn

from export.convert import constant_name
from fastvlm_ref.model.attention import AttentionBlock
from fastvlm_ref.model.convffn import ConvFFN
from validation.faults.bench import Bench
from validation.faults.fault import Fault, fault
from validation.faults.layers import ATTENTION, LAYER, MIXER, LayerEdit
from validation.faults.programs import Array, taken

FAULTS: list[Fault] = []
planted = partial(fault, FAULTS, "constants")
UP = f"layers.{LAYER}.mlp.up_proj"


def exchange(one: Array, other: Array) -> None:
    """Puts each array's numbers into the other."""
    one[...], other[...] = other.copy(), one.copy()


def middle(values: Array) -> int:
    """Returns the flat index of the first number but 0 from the middle on."""
    found = np.flatnonzero(values.reshape(-1)[values.size // 2 :])
    return values.size // 2 + int(found[0])


@planted("build")
def sign_of_a_decoder_weight(bench: Bench) -> None:
    """One weight of an MLP has the other sign."""
    with bench.language() as program:
        weight = program.stored(UP).reshape(-1)
        weight[middle(weight)] *= -1


@planted("build")
def sign_of_an_encoder_weight(bench: Bench) -> None:
    """One weight of a ConvFFN has the other sign."""
    with bench.encoder() as program:
        weight = program.stored(f"{MIXER}.convffn.fc1").reshape(-1)
        weight[middle(weight)] *= -1


@planted("build")
def last_bit_of_a_weight(bench: Bench) -> None:
    """One weight of attention is the next number of fp16."""
    with bench.language() as program:
        weight = program.stored(f"layers.{LAYER}.self_attn.o_proj").reshape(-1)
        at = middle(weight)
        weight.view(np.uint16)[at] ^= 1


@planted("build")
def bias_lost_in_the_decoder(bench: Bench) -> None:
    """The bias of a layer's values is 0."""
    with bench.language() as program:
        program.stored(f"layers.{LAYER}.self_attn.v_proj", "bias")[:] = 0


@planted("build")
def bias_lost_in_the_encoder(bench: Bench) -> None:
    """The bias of a squeeze-excite gate is 0."""
    with bench.encoder() as program:
        program.stored("conv_exp.se.expand", "bias")[:] = 0


@planted("build")
def gain_of_a_norm_lost(bench: Bench) -> None:
    """The gain of an RMSNorm is 1."""
    with bench.language() as program:
        program.stored(f"layers.{LAYER}.input_layernorm")[:] = 1


@planted("build")
def gains_of_two_norms_exchanged(bench: Bench) -> None:
    """The two RMSNorms of a layer have each other's gain."""
    with bench.language() as program:
        layer = f"layers.{LAYER}"
        exchange(program.stored(f"{layer}.input_layernorm"), program.stored(f"{layer}.post_attention_layernorm"))


@planted("build")
def kernel_transposed(bench: Bench) -> None:
    """A 7×7 kernel of a down-sampling has rows and columns exchanged."""
    with bench.encoder() as program:
        kernel = program.stored("network.1.0")
        kernel[...] = kernel.swapaxes(2, 3).copy()


@planted("build")
def kernel_mirrored(bench: Bench) -> None:
    """A 7×7 kernel of a ConvFFN is turned by 180°: a convolution where a correlation is meant."""
    with bench.encoder() as program:
        kernel = program.stored(f"{MIXER}.convffn.conv")
        kernel[...] = kernel[:, :, ::-1, ::-1].copy()


@planted("build")
def stem_takes_blue_first(bench: Bench) -> None:
    """The stem's weights are those of a model that was trained on BGR."""
    with bench.encoder() as program:
        kernel = program.stored("patch_embed.0.conv")
        kernel[...] = kernel[:, ::-1].copy()


@planted("build")
def layers_have_each_other_s_weights(bench: Bench) -> None:
    """Two layers have each other's `down_proj`."""
    with bench.language() as program:
        exchange(program.stored(f"layers.{LAYER}.mlp.down_proj"), program.stored(f"layers.{LAYER + 1}.mlp.down_proj"))


@planted("build")
def keys_and_values_have_each_other_s_weights(bench: Bench) -> None:
    """`k_proj` and `v_proj` of a layer are exchanged, biases too."""
    with bench.language() as program:
        for leaf in ("weight", "bias"):
            keys, values = (program.stored(f"layers.{LAYER}.self_attn.{part}_proj", leaf) for part in "kv")
            exchange(keys, values)


@planted("build")
def queries_not_regrouped(bench: Bench) -> None:
    """The heads of `q_proj` lie as in the checkpoint, not as the graph reads them."""
    text = bench.model.config.text
    shape = (text.kv_heads, text.head_dim, text.heads // text.kv_heads, -1)
    with bench.language() as program:
        weight = program.stored(f"layers.{LAYER}.self_attn.q_proj")
        weight[...] = weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape).copy()


@planted("build")
def scale_of_the_scores_lost(bench: Bench) -> None:
    """1/√D is missing from `q_proj`."""
    with bench.language() as program:
        for leaf in ("weight", "bias"):
            program.stored(f"layers.{LAYER}.self_attn.q_proj", leaf)[...] *= np.sqrt(bench.model.config.text.head_dim)


@planted("build", scheme="int8")
def quantised_scale_doubled(bench: Bench) -> None:
    """One output channel of an int8 layer has twice its scale."""
    with bench.language() as program:
        scale = program.stored(UP, part="scale").reshape(-1)
        scale[scale.size // 2] *= 2


@planted("build", scheme="int8")
def quantised_code_negated(bench: Bench) -> None:
    """The largest code of an int8 layer has the other sign."""
    with bench.language() as program:
        codes = program.stored(f"layers.{LAYER}.self_attn.o_proj", part="data").reshape(-1)
        codes[codes.argmax()] *= -1


@planted("build", scheme="lut4")
def palette_entries_exchanged(bench: Bench) -> None:
    """Two entries of one palette are exchanged."""
    with bench.language() as program:
        palette = program.stored(UP, part="lut")
        first = palette.reshape(-1, palette.shape[-2])[0]
        first[[5, 6]] = first[[6, 5]]


@planted("build", scheme="int8")
def scale_of_an_embedding_row_doubled(bench: Bench) -> None:
    """One row of the int8 embedding table has twice its scale."""
    table = bench.build.embeddings
    assert table is not None
    scales = np.memmap(table.file, np.float16, "r+", offset=table.rows * table.width)
    scales[table.rows // 2] *= 2


@planted("build")
def embedding_rows_exchanged(bench: Bench) -> None:
    """Two tokens have each other's row of the embedding table."""
    table = bench.embeddings()
    row = len(table) // 2
    exchange(table[row], table[row + 1])


@planted("build")
def sign_of_an_embedding(bench: Bench) -> None:
    """One number of the embedding table has the other sign."""
    table = bench.embeddings().reshape(-1)
    table[middle(table)] *= -1


@planted("build")
def manifest_with_another_eps(bench: Bench) -> None:
    """The manifest states an eps of the norms that the checkpoint does not have."""
    bench.tell("model.text.rms_norm_eps", lambda eps: eps * 10)


@planted("build")
def manifest_with_another_rope_base(bench: Bench) -> None:
    """The manifest states a RoPE base of 1e4, by which the host makes its angles."""
    bench.tell("model.text.rope_theta", lambda _: 1e4)


@planted("build")
def manifest_with_another_stop_id(bench: Bench) -> None:
    """The manifest ends an answer at another token."""
    bench.tell("prompt.stop_ids", lambda ids: [ids[0] - 1, *ids[1:]])


@planted("build")
def manifest_with_another_image_rule(bench: Bench) -> None:
    """The manifest has pictures cropped, where the checkpoint has them padded, or the other way round."""
    bench.tell("image.rule", {"pad": "crop", "crop": "pad"}.__getitem__)


@planted("graph")
def decode_reads_another_layer_s_weights(bench: Bench) -> None:
    """In `decode`, and not in `prefill`, two layers name each other's `o_proj` in the weight file."""
    with bench.language() as program:
        function = program.functions["decode"]
        names = (constant_name(f"layers.{number}.self_attn.o_proj.weight") for number in (LAYER, LAYER + 1))
        one, other = (function.maker(name).attributes["val"].blobFileValue for name in names)
        one.offset, other.offset = other.offset, one.offset


@planted("graph")
def eps_of_an_rms_norm(bench: Bench) -> None:
    """An RMSNorm adds 1e-5 in place of 1e-6."""
    with bench.language() as program:
        for function in program.functions.values():
            norm = function.behind(LayerEdit(function).weighted("mlp.gate_proj"), "layer_norm")
            function.bind(norm, epsilon=np.array(10 * function.numbers(norm, "epsilon"), np.float16))


@planted("graph")
def eps_of_a_layer_norm(bench: Bench) -> None:
    """The norm before an attention of the encoder has ten times its eps."""
    with bench.encoder() as program:
        for function in program.functions.values():
            variance = function.behind(function.weighted(f"{ATTENTION}.token_mixer.q"), "add")
            square = function.maker(taken(variance, "y"))
            root = function.maker(taken(square, "x"))
            function.bind(root, y=np.array(function.numbers(root, "y") * np.sqrt(10), np.float16))


def weight_of(bench: Bench, path: str) -> torch.Tensor:
    """Returns a parameter of the reference, to be changed in place."""
    return bench.model.get_parameter(path).data


@planted("reference")
def sign_of_a_reference_weight(bench: Bench) -> None:
    """One weight of the reference's decoder has the other sign."""
    weight = weight_of(bench, f"decoder.layers.{LAYER}.mlp.gate_proj.weight").view(-1)
    weight[middle(weight.numpy())] *= -1


@planted("reference")
def reference_with_another_eps(bench: Bench) -> None:
    """An RMSNorm of the reference adds 1e-5 in place of 1e-6."""
    bench.model.decoder.layers[LAYER].post_attention_layernorm.eps *= 10  # type: ignore[operator,union-attr]


@planted("reference")
def batch_norm_with_another_eps(bench: Bench) -> None:
    """A batch norm of the reference adds 1e-3 to its variance in place of 1e-5."""
    ffn = cast(ConvFFN, bench.model.vision_encoder.get_submodule(f"{MIXER}.convffn"))
    cast(nn.BatchNorm2d, ffn.conv.bn).eps = 1e-3


@planted("reference")
def layer_scale_lost(bench: Bench) -> None:
    """An attention of the reference's encoder is added without its layer scale."""
    block = cast(AttentionBlock, bench.model.vision_encoder.get_submodule(ATTENTION))
    block.layer_scale_1.data.fill_(1)


@planted("reference")
def embedding_rows_of_the_reference_exchanged(bench: Bench) -> None:
    """Two tokens of the reference have each other's row of the embedding table."""
    table = weight_of(bench, "decoder.embed_tokens.weight")
    row = len(table) // 2
    table[[row, row + 1]] = table[[row + 1, row]]
