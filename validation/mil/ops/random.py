"""Random ops (iOS15 random). A seed of 0 or more gives the same values at every call, else torch's own state is used.

Core ML's generator is not public: the distributions agree, the numbers cannot.
"""

from __future__ import annotations

import torch

from validation.mil.registry import Ints, Tensor, op


def _generator(seed: int) -> torch.Generator | None:
    return torch.Generator(torch.get_default_device()).manual_seed(seed) if seed >= 0 else None


@op("random_bernoulli", fresh=True)
def random_bernoulli(shape: Ints, prob: float = 0.5, seed: int = -1) -> Tensor:
    """iOS15 random.random_bernoulli: 1 with probability prob, else 0"""
    return (torch.rand(shape, generator=_generator(seed)) < prob).float()


@op("random_categorical", fresh=True)
def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """iOS15 random.random_categorical: `size` draws with replacement from each last axis (logits or probs)"""
    if mode not in ("logits", "probs"):
        raise ValueError(f"unknown mode {mode!r}")
    weights = torch.softmax(x, dim=-1) if mode == "logits" else x
    rows = weights.reshape(-1, weights.shape[-1])
    drawn = torch.multinomial(rows, size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size)


@op("random_normal", fresh=True)
def random_normal(shape: Ints, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    """iOS15 random.random_normal"""
    return torch.randn(shape, generator=_generator(seed)) * stddev + mean


@op("random_uniform", fresh=True)
def random_uniform(shape: Ints, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    """iOS15 random.random_uniform: [low, high)"""
    return torch.rand(shape, generator=_generator(seed)) * (high - low) + low
