"""Faults of single ops: another form of GELU, an axis, a pad, a factor. Weights and wiring are as they should be."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvlm_ref.model.attention import AttentionBlock, LayerNormChannel
from fastvlm_ref.model.convffn import ConvFFN
from fastvlm_ref.model.decoder import MLP, RMSNorm
from fastvlm_ref.model.mobileone import SEBlock
from validation.faults.bench import Bench
from validation.faults.fault import Fault, fault
from validation.faults.layers import ATTENTION, MIXER, LayerEdit, in_encoder, in_language
from validation.faults.otherwise import instead, layer_of
from validation.faults.programs import FunctionEdit, result, taken

FAULTS: list[Fault] = []
planted = partial(fault, FAULTS, "ops")
REDUCE = "conv_exp.se.reduce"


@planted("graph")
def gelu_by_tanh(bench: Bench) -> None:
    """One GELU of the encoder is the approximation by tanh."""

    def change(function: FunctionEdit) -> None:
        gelu = function.ahead(function.weighted(f"{MIXER}.convffn.fc1"), "gelu")
        function.bind(gelu, mode=np.array("TANH_APPROXIMATION"))

    in_encoder(bench, change)


@planted("graph")
def sigmoid_for_silu(bench: Bench) -> None:
    """A layer's MLP is gated by the sigmoid alone."""

    def change(layer: LayerEdit) -> None:
        layer.function.ahead(layer.weighted("mlp.gate_proj"), "silu").type = "sigmoid"

    in_language(bench, change)


@planted("graph")
def softmax_over_queries(bench: Bench) -> None:
    """A softmax of the encoder runs over the axis of the queries."""

    def change(function: FunctionEdit) -> None:
        softmax = function.ahead(function.weighted(f"{ATTENTION}.token_mixer.q"), "softmax")
        function.bind(softmax, axis=np.array(-2, np.int32))

    in_encoder(bench, change)


@planted("graph")
def weights_of_attention_transposed(bench: Bench) -> None:
    """Values are mixed with the transposed weights of attention."""

    def change(function: FunctionEdit) -> None:
        mixing = function.behind(function.weighted(f"{ATTENTION}.token_mixer.proj.conv"), "matmul")
        function.bind(mixing, transpose_y=np.array(not function.numbers(mixing, "transpose_y")))

    in_encoder(bench, change)


@planted("graph")
def power_of_the_mean_not_undone(bench: Bench) -> None:
    """What the gate is computed from is not multiplied by 2⁻⁶ before its mean, though the weights count on it."""

    def change(function: FunctionEdit) -> None:
        factor = function.behind(function.weighted(REDUCE), "mul")
        function.bind(factor, y=np.array(1, np.float16))

    in_encoder(bench, change)


@planted("graph")
def largest_for_mean(bench: Bench) -> None:
    """The gate is computed from the largest value of each channel, not from their mean."""

    def change(function: FunctionEdit) -> None:
        last = function.behind(function.weighted(REDUCE), "reduce_mean")
        first = function.maker(taken(last, "x"))
        last.type = first.type = "reduce_max"

    in_encoder(bench, change)


@planted("graph")
def relu_of_the_gate_lost(bench: Bench) -> None:
    """The gate has no ReLU between its two convolutions."""

    def change(function: FunctionEdit) -> None:
        function.bind(function.weighted("conv_exp.se.expand"), x=result(function.weighted(REDUCE)))

    in_encoder(bench, change)


@planted("graph")
def padding_at_one_side(bench: Bench) -> None:
    """A 7×7 convolution of stride 2 pads as TensorFlow does: less ahead, more behind."""

    def change(function: FunctionEdit) -> None:
        function.bind(function.weighted("network.3.0"), pad=np.array([2, 4, 2, 4], np.int32))

    in_encoder(bench, change)


@planted("graph")
def dilated_kernel(bench: Bench) -> None:
    """A 3×3 convolution takes every second position."""

    def change(function: FunctionEdit) -> None:
        two = np.array([2, 2], np.int32)
        function.bind(function.weighted(f"{MIXER}.token_mixer"), dilations=two, pad=np.array([2] * 4, np.int32))

    in_encoder(bench, change)


@planted("graph")
def mean_not_subtracted(bench: Bench) -> None:
    """A LayerNorm of the encoder does not take away the mean."""

    def change(function: FunctionEdit) -> None:
        normed = function.behind(function.weighted(f"{ATTENTION}.token_mixer.q"), "mul")
        centred = function.maker(taken(normed, "x"))
        function.redirect(result(centred), taken(centred, "x"))

    in_encoder(bench, change)


@planted("graph")
def norm_without_its_mirror(bench: Bench) -> None:
    """An RMSNorm is a layer norm of [y, y]: the mirrored half that makes the mean 0 is missing."""

    def change(layer: LayerEdit) -> None:
        mirrored = layer.function.behind(layer.weighted("mlp.gate_proj"), "concat")
        half = taken(mirrored, "values")
        layer.function.bind(mirrored, values=(half, half))

    in_language(bench, change)


@planted("reference")
def gelu_by_tanh_in_the_reference(bench: Bench) -> None:
    """One GELU of the reference's encoder is the approximation by tanh."""
    ffn = cast(ConvFFN, bench.model.vision_encoder.get_submodule(f"{MIXER}.convffn"))
    ffn.act = nn.GELU(approximate="tanh")


@planted("reference")
def gelu_for_silu_in_the_reference(bench: Bench) -> None:
    """A layer of the reference gates its MLP by GELU."""

    def forward(mlp: MLP, x: Tensor) -> Tensor:
        return cast(Tensor, mlp.down_proj(F.gelu(mlp.gate_proj(x)) * mlp.up_proj(x)))

    instead(layer_of(bench).mlp, forward)


@planted("reference")
def rms_norm_takes_the_mean_away(bench: Bench) -> None:
    """An RMSNorm of the reference is a LayerNorm."""

    def forward(norm: RMSNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], norm.weight, None, norm.eps)

    instead(layer_of(bench).post_attention_layernorm, forward)


@planted("reference")
def layer_norm_over_positions(bench: Bench) -> None:
    """A LayerNorm of the reference's encoder runs over the positions of each channel."""

    def forward(norm: LayerNormChannel, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3), keepdim=True)
        normed = centred / torch.sqrt(centred.pow(2).mean((2, 3), keepdim=True) + norm.eps)
        return normed * norm.weight[:, None, None] + norm.bias[:, None, None]

    block = cast(AttentionBlock, bench.model.vision_encoder.get_submodule(ATTENTION))
    instead(block.norm, forward)


@planted("reference")
def gate_lost(bench: Bench) -> None:
    """The reference's squeeze-excite gate lets everything through."""

    def forward(gate: SEBlock, x: Tensor) -> Tensor:
        SEBlock.forward(gate, x)  # rungs that look at its parts still find them used
        return x

    instead(bench.model.vision_encoder.conv_exp.se, forward)


@planted("reference")
def relu_in_the_projector(bench: Bench) -> None:
    """The reference's projector has a ReLU where GELU belongs."""
    bench.model.projector[1] = nn.ReLU()
