"""The reference as an ideal fp16 device would run it: every op in float32, its result rounded once to fp16.

That is the yardstick for an exported encoder: fp16 alone costs 45–59 dB SNR here, so an absolute limit would either
sleep or alarm. A TorchDispatchMode sees each aten op after torch has composed it, and rounds what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def _round(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.half().float()
    return value


class RoundEachOp(TorchDispatchMode):
    """Inside this context every float32 result of every op carries fp16 precision (and overflows as fp16 does)."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # a view must stay a view of the tensor it looks at; its values were rounded when they were made
        is_view = getattr(func, "is_view", False)
        return out if is_view else tree_map(_round, out)
