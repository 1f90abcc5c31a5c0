"""Quantise and dequantise computed tensors (iOS17 quantization_ops)."""

from __future__ import annotations

import torch

from validation.mil.dtypes import dtype_named
from validation.mil.registry import Tensor, op


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """values (), or (N,) shaped to act on `axis` of x."""
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape(())
    if axis is None:
        raise ValueError(f"{values.numel()} scales need an axis")
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


@op("quantize", fresh=True)
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """iOS17 quantization_ops.quantize: clip(round(input / scale) + zero_point), halves to even"""
    limits = torch.iinfo(dtype_named(output_dtype).torch)
    whole = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        whole = whole + _along(zero_point.float(), input, axis)
    return torch.clamp(whole, limits.min, limits.max)


@op("dequantize", fresh=True)
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """iOS17 quantization_ops.dequantize: scale * (input - zero_point)"""
    values = input.float()
    if zero_point is not None:
        values = values - _along(zero_point.float(), input, axis)
    return values * _along(scale, input, axis)
