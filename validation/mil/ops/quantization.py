"""Quantise and dequantise computed tensors (iOS17 quantization_ops)."""

from __future__ import annotations

import torch

from validation.mil.dtypes import dtype_named
from validation.mil.ops.per_axis import along
from validation.mil.registry import Tensor, op


@op("quantize", fresh=True)
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """iOS17 quantization_ops.quantize: clip(round(input / scale) + zero_point), halves to even"""
    limits = torch.iinfo(dtype_named(output_dtype).torch)
    whole = torch.round(input / along(scale, input.ndim, axis))
    if zero_point is not None:
        whole = whole + along(zero_point.float(), input.ndim, axis)
    return torch.clamp(whole, limits.min, limits.max)


@op("dequantize", fresh=True)
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """iOS17 quantization_ops.dequantize: scale * (input - zero_point)"""
    values = input.float()
    if zero_point is not None:
        values = values - along(zero_point.float(), input.ndim, axis)
    return values * along(scale, input.ndim, axis)
