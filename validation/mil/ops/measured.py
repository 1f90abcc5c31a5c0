"""Whether a kernel of this machine sums fp16 products in float32 and rounds once: measured, because nothing states it.

A kernel that sums in fp16 errs by more than 20 units in the last place on what is measured here; the order of float32
sums moves a result by one at most.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from validation.mil.registry import Tensor

_TERMS, _RESULTS = 4096, 128


def rounds_once(product: Callable[[Tensor, Tensor], Tensor], device: str = "cpu") -> bool:
    """Whether product(x (1, 4096), weight (128, 4096)), fp16 like its arguments, is x times weight rounded once."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_RESULTS, _TERMS, generator=generator, device="cpu").to(device, torch.float16)
    x = torch.randn(1, _TERMS, generator=generator, device="cpu").to(device, torch.float16)
    expected = F.linear(x.float(), weight.float())
    error = (product(x, weight).float() - expected).abs()
    return bool((error <= 0.51 * expected.abs() * 2**-10 + 1e-3).all())
