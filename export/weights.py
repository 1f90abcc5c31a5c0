"""Weights on their way to fp16: not-a-number refused, what is too large saturated and reported.

fp16 ends at 65,504; a larger weight would become infinite and with it every answer. It is clamped, and the caller says
so (progress, manifest). It knows nothing of Core ML.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvlm.errors import TensorError

LARGEST = 65504.0


def saturate(name: str, weight: Tensor) -> tuple[Tensor, int]:
    """Returns the tensor clamped to fp16's range, itself where nothing is too large, and how many values were clamped.

    Raises TensorError when it holds NaN or infinity: no export of it can be right.
    """
    weight = weight.detach()
    low, high = (float(value) for value in torch.aminmax(weight))
    if low != low or high != high or max(-low, high) == float("inf"):
        raise TensorError(
            f"{name} holds NaN or infinity; the checkpoint is damaged or its training diverged, use an earlier one"
        )
    if max(-low, high) <= LARGEST:
        return weight, 0
    return weight.clamp(-LARGEST, LARGEST), int((weight.abs() > LARGEST).sum())
