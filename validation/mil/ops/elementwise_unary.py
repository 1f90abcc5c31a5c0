"""Element-wise ops of one tensor (iOS15 and iOS17 elementwise_unary)."""

from __future__ import annotations

import torch

from validation.mil.dtypes import dtype_named
from validation.mil.registry import Kind, Tensor, op


@op("abs", kind=Kind.NATIVE, fresh=True)
def abs_(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.abs"""
    return torch.abs(x)


@op("acos", fresh=True)
def acos(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.acos"""
    return torch.acos(x)


@op("asin", fresh=True)
def asin(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.asin"""
    return torch.asin(x)


@op("atan", fresh=True)
def atan(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.atan"""
    return torch.atan(x)


@op("atanh", fresh=True)
def atanh(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.atanh"""
    return torch.atanh(x)


@op("ceil", fresh=True)
def ceil(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.ceil"""
    return torch.ceil(x)


@op("clip", fresh=True)
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """iOS15 elementwise_unary.clip: into [alpha, beta]"""
    return torch.clamp(x, alpha, beta)


@op("cos", fresh=True)
def cos(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.cos"""
    return torch.cos(x)


@op("cosh", fresh=True)
def cosh(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.cosh"""
    return torch.cosh(x)


@op("erf", fresh=True, pointwise=True)
def erf(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.erf"""
    return torch.erf(x)


@op("exp", kind=Kind.NATIVE, fresh=True)
def exp(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.exp"""
    return torch.exp(x)


@op("exp2", fresh=True)
def exp2(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.exp2"""
    return torch.exp2(x)


@op("floor", fresh=True)
def floor(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.floor"""
    return torch.floor(x)


@op("inverse", fresh=True)
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """iOS15 elementwise_unary.inverse: 1 / (x + epsilon)"""
    return torch.reciprocal(x + epsilon)


@op("log", fresh=True)
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """iOS15 elementwise_unary.log: log(x + epsilon); the default epsilon is the least positive float32"""
    return torch.log(x + epsilon)


@op("logical_not", kind=Kind.NATIVE, fresh=True)
def logical_not(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.logical_not"""
    return torch.logical_not(x)


@op("round", fresh=True)
def round_(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.round: halves to even"""
    return torch.round(x)


@op("rsqrt", fresh=True)
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """iOS15 elementwise_unary.rsqrt: 1 / sqrt(x + epsilon)"""
    return torch.rsqrt(x + epsilon)


@op("sign", fresh=True)
def sign(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.sign"""
    return torch.sign(x)


@op("sin", fresh=True)
def sin(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.sin"""
    return torch.sin(x)


@op("sinh", fresh=True)
def sinh(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.sinh"""
    return torch.sinh(x)


@op("sqrt", kind=Kind.NATIVE, fresh=True)
def sqrt(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.sqrt"""
    return torch.sqrt(x)


@op("square", kind=Kind.NATIVE, fresh=True)
def square(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.square"""
    return x * x


@op("tan", fresh=True)
def tan(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.tan"""
    return torch.tan(x)


@op("tanh", kind=Kind.NATIVE, fresh=True)
def tanh(x: Tensor) -> Tensor:
    """iOS15 elementwise_unary.tanh"""
    return torch.tanh(x)


@op("threshold", fresh=True)
def threshold(x: Tensor, alpha: float) -> Tensor:
    """iOS15 elementwise_unary.threshold: max(x, alpha)"""
    return torch.clamp(x, min=alpha)


@op("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """iOS15, iOS17 elementwise_unary.cast: floats truncate to integers, anything but zero is true"""
    target = dtype_named(dtype).torch
    # Half targets are left to the result's declared type, which precision "fp32" holds in float32.
    return x if target is torch.float16 else x.to(target)
