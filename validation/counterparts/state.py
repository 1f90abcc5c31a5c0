"""The state of a package and the reference's KV cache: where each layer's keys and values lie, and as what.

| row of the state | is of the cache | besides |
|---|---|---|
| 2l | keys of the package's layer l, rotated | without the constant part of their bias (`export.key_shift`) |
| 2l + 1 | values of it | times 2^−values |

Heads are in the checkpoint's order for either target; "ane" has positions last, "gpu" channels (`export.contract`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.key_shift import k_bias, key_shift
from validation.counterparts.counterpart import Change
from validation.counterparts.decoder import DecoderPart

KINDS = ("keys", "values")


@dataclass(frozen=True)
class Kept:
    """Keys or values of one layer.

    kind: "keys" or "values", as `KVCache` calls them. layer: the decoder's number of it. row: of the package's state.
    result: from what the cache holds, float32 (kv_heads, S, D), to what the state should hold, in the same order.
    """

    kind: str
    layer: int
    row: int
    target: str
    result: Change

    def filled(self, state: NDArray[np.floating], positions: int) -> NDArray[np.float32]:
        """Returns the first `positions` of a state's row, as float32 (kv_heads, S, D)."""
        row = state[self.row]
        if self.target == "ane":
            row = row.swapaxes(-1, -2)
        return np.ascontiguousarray(row[:, :positions], np.float32)


def state_counterparts(part: DecoderPart) -> Iterator[Kept]:
    """Gives keys and values of every layer of a package, in the order of its state."""
    for number, layer in enumerate(part.layers):
        yield Kept("keys", layer, 2 * number, part.target, partial(_without_shift, part, layer))
        factor = 2.0 ** -part.sizes.protection.values_of(layer)
        yield Kept("values", layer, 2 * number + 1, part.target, partial(torch.mul, other=factor))


def _without_shift(part: DecoderPart, layer: int, keys: Tensor) -> Tensor:
    if not part.sizes.shifts_keys:
        return keys
    shift = key_shift(k_bias(part.decoder, layer), part.sizes.text, part.sizes.context)
    return keys - shift[:, None]
