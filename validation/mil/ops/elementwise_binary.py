"""Element-wise ops of two tensors (iOS15 elementwise_binary).

The arithmetic ones are NATIVE: torch's fp16 kernels compute one element in float32 and round once.
"""

from __future__ import annotations

import torch

from validation.mil.registry import Kind, Tensor, op


@op("add", kind=Kind.NATIVE, fresh=True)
def add(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.add"""
    return x + y


@op("sub", kind=Kind.NATIVE, fresh=True)
def sub(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.sub"""
    return x - y


@op("mul", kind=Kind.NATIVE, fresh=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.mul"""
    return x * y


@op("real_div", kind=Kind.NATIVE, fresh=True)
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.real_div: true division; the quotient of integers is an integer, cut towards 0"""
    whole = not (x.is_floating_point() or y.is_floating_point())
    return torch.div(x, y, rounding_mode="trunc") if whole else torch.true_divide(x, y)


@op("floor_div", fresh=True)
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.floor_div"""
    return torch.div(x, y, rounding_mode="floor")


@op("mod", fresh=True)
def mod(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.mod: the remainder has the divisor's sign"""
    return torch.remainder(x, y)


@op("pow", fresh=True)
def pow_(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.pow"""
    return torch.pow(x, y)


@op("maximum", kind=Kind.NATIVE, fresh=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.maximum"""
    return torch.maximum(x, y)


@op("minimum", kind=Kind.NATIVE, fresh=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.minimum"""
    return torch.minimum(x, y)


@op("equal", kind=Kind.NATIVE, fresh=True)
def equal(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.equal"""
    return torch.eq(x, y)


@op("not_equal", kind=Kind.NATIVE, fresh=True)
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.not_equal"""
    return torch.ne(x, y)


@op("greater", kind=Kind.NATIVE, fresh=True)
def greater(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.greater"""
    return torch.gt(x, y)


@op("greater_equal", kind=Kind.NATIVE, fresh=True)
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.greater_equal"""
    return torch.ge(x, y)


@op("less", kind=Kind.NATIVE, fresh=True)
def less(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.less"""
    return torch.lt(x, y)


@op("less_equal", kind=Kind.NATIVE, fresh=True)
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.less_equal"""
    return torch.le(x, y)


@op("logical_and", kind=Kind.NATIVE, fresh=True)
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.logical_and"""
    return torch.logical_and(x, y)


@op("logical_or", kind=Kind.NATIVE, fresh=True)
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.logical_or"""
    return torch.logical_or(x, y)


@op("logical_xor", kind=Kind.NATIVE, fresh=True)
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """iOS15 elementwise_binary.logical_xor"""
    return torch.logical_xor(x, y)
