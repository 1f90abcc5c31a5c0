"""Which of torch's kernels takes a picture of so many spatial axes: convolutions and pools have one, two or three."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from validation.mil.registry import Tensor


def kernel_for(axes: int, kernels: Mapping[int, Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The kernel for `axes` spatial axes; ValueError where torch has none."""
    if axes not in kernels:
        raise ValueError(f"{axes} spatial axes, expected {min(kernels)} to {max(kernels)}")
    return kernels[axes]
