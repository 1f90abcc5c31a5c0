"""Activations (iOS15 and iOS17 activation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from validation.mil.ops import blocked
from validation.mil.registry import Kind, Tensor, op


def _per_channel(alpha: Tensor, x: Tensor) -> Tensor:
    """alpha (C,) shaped to act on axis 1 of x, or as a scalar."""
    if alpha.ndim == 0 or alpha.numel() == 1:
        return alpha.reshape(())
    return alpha.reshape(-1, *[1] * (x.ndim - 2))


@op("relu", kind=Kind.NATIVE, fresh=True)
def relu(x: Tensor) -> Tensor:
    """iOS15 activation.relu"""
    return F.relu(x)


@op("relu6", fresh=True)
def relu6(x: Tensor) -> Tensor:
    """iOS15 activation.relu6"""
    return torch.clamp(x, 0, 6)


@op("clamped_relu", fresh=True)
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """iOS15 activation.clamped_relu: min(x if x >= 0 else alpha * x, beta)"""
    return torch.clamp(F.leaky_relu(x, alpha), max=beta)


@op("elu", fresh=True)
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """iOS15 activation.elu"""
    return F.elu(x, alpha)


@op("gelu", fresh=True, pointwise=True)
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """iOS15 activation.gelu: EXACT (erf), TANH_APPROXIMATION, SIGMOID_APPROXIMATION x * sigmoid(1.702 x)"""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"unknown gelu mode {mode!r}")


@op("leaky_relu", fresh=True)
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """iOS15 activation.leaky_relu"""
    return F.leaky_relu(x, alpha)


@op("linear_activation", fresh=True)
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    """iOS15 activation.linear_activation: alpha * x + beta"""
    return x * alpha + beta


@op("prelu", fresh=True)
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """iOS15 activation.prelu: one alpha per channel (axis 1)"""
    return torch.where(x >= 0, x, x * _per_channel(alpha, x))


@op("scaled_tanh", fresh=True)
def scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """iOS15 activation.scaled_tanh: alpha * tanh(beta * x)"""
    return alpha * torch.tanh(beta * x)


@op("sigmoid", kind=Kind.NATIVE, fresh=True)
def sigmoid(x: Tensor) -> Tensor:
    """iOS15 activation.sigmoid"""
    return torch.sigmoid(x)


@op("sigmoid_hard", fresh=True)
def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """iOS15 activation.sigmoid_hard: alpha * x + beta within [0, 1]"""
    return torch.clamp(x * alpha + beta, 0, 1)


@op("silu", kind=Kind.NATIVE, fresh=True)
def silu(x: Tensor) -> Tensor:
    """iOS15 activation.silu: x * sigmoid(x)"""
    return F.silu(x)


@op("softplus", fresh=True)
def softplus(x: Tensor) -> Tensor:
    """iOS15 activation.softplus: log(1 + exp(x)), without overflow"""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


@op("softplus_parametric", fresh=True)
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """iOS15 activation.softplus_parametric: alpha * log(1 + exp(beta * x)), per channel (axis 1)"""
    inner = _per_channel(beta, x) * x
    return _per_channel(alpha, x) * torch.logaddexp(inner, torch.zeros((), dtype=x.dtype))


def _softmax_of_half(x: Tensor, axis: int = -1) -> Tensor:
    """`softmax` of fp16: torch's kernel for the last axis computes in float32 and rounds once, the others do not."""
    if x.dtype is torch.float16 and x.device.type == "cpu" and axis in (-1, x.ndim - 1):
        return torch.softmax(x, axis)
    return torch.softmax(x.float(), axis).half()


@op("softmax", fresh=True, blocked=blocked.softmax, pieced=_softmax_of_half)
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """iOS15 activation.softmax"""
    return torch.softmax(x, axis)


@op("softsign", fresh=True)
def softsign(x: Tensor) -> Tensor:
    """iOS15 activation.softsign: x / (1 + |x|)"""
    return F.softsign(x)


@op("thresholded_relu", fresh=True)
def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """iOS15 activation.thresholded_relu: x where x >= alpha, else 0"""
    return torch.where(x >= alpha, x, torch.zeros((), dtype=x.dtype))
