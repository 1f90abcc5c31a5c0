"""The ways in which a weight can be stored in less than fp16, and which weights each of them can hold.

`int8`: one fp16 scale per output channel. `int4`: one fp16 scale and one int4 offset per 32 inputs of a row, the form
that GPUs read. `lut6`, `lut4`: 64 or 16 fp16 values per 32 output channels, the form that the Neural Engine reads.
int4 is affine: symmetric blocks cost an eighth of a bit less and lose more than that is worth, and they fall behind
coremltools' own affine blocks (benchmarks/compression.py). What does not fit is refused in words, never left dense.
It knows no values, only shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["channel", "block", "palette"]
Shape = tuple[int, ...]
HALF_BYTES = 2


@dataclass(frozen=True)
class Scheme:
    """One way to store a weight (O, K) or (O, K, height, width).

    `bits` of a code; `group`: how many inputs (block) or output channels (palette) share a table; `affine`: whether an
    offset of the codes' type goes with each scale; `dtype`: the MIL type of the codes; `op`: the constexpr op that
    makes them dense; `targets`: who runs it well.
    """

    name: str
    bits: int
    kind: Kind
    group: int
    affine: bool
    dtype: str
    op: str
    targets: tuple[str, ...]

    @property
    def weighted(self) -> bool:
        """Whether calibration is worth looking at: 256 values lose little anywhere, and inputs it never met would."""
        return self.kind != "channel"

    def fits(self, target: str) -> bool:
        """Returns whether `target` ("ane" or "gpu") can run it."""
        return target in self.targets

    def problem(self, shape: Shape) -> str | None:
        """Returns in words why a weight of this shape cannot be held, None when it can."""
        if len(shape) < 2:
            return f"has {len(shape)} axis, rows and inputs are needed"
        if self.kind == "palette" and shape[0] % self.group:
            return f"has {shape[0]} rows, not a multiple of {self.group}"
        if self.kind == "block" and math.prod(shape[2:]) != 1:
            return f"has a kernel of {'×'.join(map(str, shape[2:]))}, blocks need 1×1"
        if self.kind == "block" and shape[1] % self.group:
            return f"has {shape[1]} inputs, not a multiple of {self.group}"
        return None

    def table_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Returns the shape of each table that goes with the codes of a weight of this shape."""
        ones = (1,) * (len(shape) - 2)
        if self.kind == "palette":
            return {"lut": (shape[0] // self.group, 1, *ones, 1 << self.bits, 1)}
        blocks = (shape[0], 1 if self.kind == "channel" else shape[1] // self.group, *ones)
        return {"scale": blocks, "offset": blocks} if self.affine else {"scale": blocks}

    def bytes(self, shape: Shape) -> int:
        """Returns how many bytes codes and tables of a weight of this shape take, each blob in whole bytes."""
        sizes = {name: math.prod(table) for name, table in self.table_shapes(shape).items()}
        packed = [math.prod(shape), sizes.pop("offset", 0)]
        return sum(-(-count * self.bits // 8) for count in packed) + HALF_BYTES * sum(sizes.values())


_SCALED, _TABLE = "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", 8, "channel", 1, False, "int8", _SCALED, ("ane", "gpu")),
        Scheme("int4", 4, "block", 32, True, "int4", _SCALED, ("gpu",)),
        Scheme("lut6", 6, "palette", 32, False, "uint6", _TABLE, ("ane", "gpu")),
        Scheme("lut4", 4, "palette", 32, False, "uint4", _TABLE, ("ane", "gpu")),
    )
}
