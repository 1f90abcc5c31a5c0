"""Rows of features of the decoder: (1, Q, width) in the reference, and how either target has them.

"ane" has them channels first, (1, width, 1, Q), and the heads of a group side by side, (kv_heads, D, G) where the
reference has (kv_heads, G, D); "gpu" has them as they are. A value may be stored as x · 2^−e.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastvlm_ref.config import TextConfig
from validation.op_parity.piece import Spot
from validation.program import Value

ANE = "ane"


def rows(find: Callable[[], Value], exponent: int = 0) -> Spot:
    """Returns what comes from outside or goes there: (1, Q, width) for either target."""
    return Spot(find, lambda x: x * 2.0**exponent, lambda x: x * 2.0**-exponent)


def features(find: Callable[[], Value], target: str, exponent: int = 0) -> Spot:
    """Returns features as the target has them."""
    if target != ANE:
        return rows(find, exponent)
    return Spot(
        find,
        lambda x: x.squeeze(2).transpose(1, 2) * 2.0**exponent,
        lambda x: x.transpose(1, 2).unsqueeze(2) * 2.0**-exponent,
    )


def heads(find: Callable[[], Value], target: str, text: TextConfig, exponent: int = 0, factor: float = 1.0) -> Spot:
    """Returns what has D features for each of the `heads` queries, stored as x · factor · 2^−exponent."""
    plain, into = features(find, target), factor * 2.0**-exponent
    apart = (text.kv_heads, text.heads // text.kv_heads, text.head_dim)
    if target != ANE:
        return Spot(find, lambda x: plain.to_reference(x) / into, lambda x: plain.to_program(x * into))
    return Spot(
        find,
        lambda x: _exchanged(plain.to_reference(x), (apart[0], apart[2], apart[1])) / into,
        lambda x: plain.to_program(_exchanged(x * into, apart)),
    )


def _exchanged(x: Tensor, apart: tuple[int, int, int]) -> Tensor:
    """(…, a·b·c) with the axes b and c exchanged."""
    return x.reshape(*x.shape[:-1], *apart).transpose(-2, -1).reshape(x.shape)
