"""The reference as an ideal fp16 device would run it: every op in float32, its result rounded once to fp16's precision.

That is the yardstick for an exported encoder: fp16 alone costs 45–59 dB SNR here, so an absolute limit would either
sleep or alarm. A TorchDispatchMode sees each aten op after torch has composed it, and rounds what it returns.
Its range is not fp16's: a reference whose activations pass 65,504 is rounded to 11 bits like any other, for what is
measured is what precision costs; that a package stays within the range is another row of the limits (`encoder.peak`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def to_half_precision(value: Tensor) -> Tensor:
    """Returns float32 values rounded to 11 bits, and to multiples of 2⁻²⁴ below 2⁻¹⁴, as fp16 does; none overflows."""
    half = value.half()
    if not half.isinf().any():
        return half.float()
    mantissa, exponent = torch.frexp(value)  # mantissa in [0.5, 1), where fp16 has 11 bits
    return torch.where(half.isinf(), torch.ldexp(mantissa.half().float(), exponent), half.float())


def _round(value: Any) -> Any:
    # on the meta device lie the weights of a model that streams, between two of their uses
    if isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type != "meta":
        return to_half_precision(value)
    return value


class RoundEachOp(TorchDispatchMode):
    """Inside this context every float32 result of every op carries fp16 precision, whatever its size."""

    rounding: Callable[[Any], Any] = staticmethod(_round)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # a view must stay a view of the tensor it looks at; its values were rounded when they were made
        is_view = getattr(func, "is_view", False)
        return out if is_view else tree_map(self.rounding, out)


def to_bfloat16(value: Any) -> Any:
    """Returns a float32 tensor rounded to bfloat16: 8 bits, in float32's range. Anything else stays as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.bfloat16().float()
    return value


class RoundEachOpToBFloat16(RoundEachOp):
    """The same for numbers that others published in bfloat16 (validation/official)."""

    rounding = staticmethod(to_bfloat16)
