"""What compressing a block of rows gives, and the limits of fp16 that the tables live in.

It knows no scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FP16_MAX = 65504.0
FP16_NORMAL = 2.0**-14  # below it fp16 has fewer bits
FP16_LEAST = 2.0**-24  # the smallest positive fp16; a scale is never less


@dataclass(frozen=True)
class Codes:
    """The stored form of a block of rows.

    codes: int8 or uint8, one code per weight, of the rows' shape (n, K, ...), not packed. tables: exactly what is to
    be stored beside them: "scale" fp16 and "offset" int8 (values of the codes' type), or "lut" fp16.
    """

    codes: Tensor
    tables: dict[str, Tensor]
