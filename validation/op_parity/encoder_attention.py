"""Attention of the encoder: its norm, and what stands between the projections, on the program's own maps.

The norm's gain and bias are in the projections' weights and 1/√D in those of the queries (`export.encoder`), so the
norm is compared without them, and a projection takes what the norm leaves. eps is held in fp16: as √eps in the norm of
plain ops, as eps in the one op `layer_norm` (`export.norms`); the reference computes with the eps that this gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastvlm_ref.model.attention import MHSA, LayerNormChannel
from validation.op_parity.between import between, norm
from validation.op_parity.maps import MAPS, maps, tokens
from validation.op_parity.partly import partly, with_values
from validation.op_parity.piece import Piece, Spot


def norm_piece(
    name: str, block: str, module: LayerNormChannel, exponent: int, safe: bool, stream: Spot, ends: Sequence[Spot]
) -> Piece:
    """Returns the norm ahead of attention, without gain and bias; `exponent`: of the stream that it reads."""
    ones, zeros = torch.ones_like(module.weight), torch.zeros_like(module.bias)
    plain = with_values(module, weight=ones, bias=zeros, eps=stored_eps(module.eps, exponent, safe))
    return norm(f"{name} norm", block, stream, ends, plain, positions=MAPS, rows=MAPS)


def stored_eps(eps: float, exponent: int, safe: bool) -> float:
    """Returns the eps that a norm of x computes with, whose input is stored as x · 2^−exponent."""
    if safe:
        return (float(np.float16(eps**0.5 * 2.0**-exponent)) * 2.0**exponent) ** 2
    return float(np.float16(eps * 4.0**-exponent)) * 4.0**exponent


def with_affine(module: LayerNormChannel, normed: Tensor) -> Tensor:
    """Returns what a projection of the reference takes, of what the norm leaves without gain and bias."""
    return normed * module.weight[:, None, None] + module.bias[:, None, None]


def attention_piece(name: str, block: str, module: MHSA, parts: Sequence[Spot], end: Spot) -> Piece:
    """Returns what stands between the projections: softmax(q kᵀ / √D) v."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qkv = torch.cat((tokens(q), tokens(k), tokens(v)), -1)
        return maps(partly(module, torch.empty(q.shape), given={"qkv": qkv}, wanted="proj"))

    return between(f"{name} attention", block, parts, (end,), attend, kinds=("normal", "wide"), rows=MAPS)
