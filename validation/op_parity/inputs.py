"""The numbers that pieces are tried on: seeded, so that the same build is tried on the same ones everywhere.

| kind | numbers | what it shows |
|---|---|---|
| normal | of size 1 | weights, and nearly everything else |
| wide | of size 4 | attention that picks few positions |
| positive | of size 1, none below 0 | a mean, which others make nearly 0 |
| tiny | of size 2⁻¹⁰ | biases, which large numbers hide; eps of a norm |
| impulse | zeros, and a one in the middle of each map | kernels: which way round they lie |
| bend | −6 … 6, where GELU, SiLU and σ bend | which of their forms is used |
| large | of size 10⁴ | clamps, and what overflows |
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from validation.op_parity.piece import Shape

SIZES = {"normal": 1.0, "wide": 4.0, "tiny": 2.0**-10, "large": 1e4}
BEND = 6.0


def numbers(kind: str, shape: Shape, name: str) -> Tensor:
    """Returns float32 numbers of a kind; `name` is the seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {kind}".encode()))
    if kind == "impulse":
        x = torch.zeros(shape)
        x[..., shape[-2] // 2, shape[-1] // 2] = 1
        return x
    if kind == "bend":
        return (2 * torch.rand(shape, generator=generator) - 1) * BEND
    x = torch.randn(shape, generator=generator)
    return x.abs() if kind == "positive" else x * SIZES[kind]
