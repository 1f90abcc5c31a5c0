"""All faults, from single numbers up to what a user reads; and the few that a short run plants."""

from __future__ import annotations

from validation.faults import block_faults, constant_faults, network_faults, op_faults, token_faults
from validation.faults.fault import Fault

CATALOGUE: tuple[Fault, ...] = (
    *constant_faults.FAULTS,
    *op_faults.FAULTS,
    *block_faults.FAULTS,
    *network_faults.FAULTS,
    *token_faults.FAULTS,
)
_SHORT = (
    "sign-of-a-decoder-weight", "eps-of-an-rms-norm", "quantised-scale-doubled", "gelu-by-tanh",
    "gelu-for-silu-in-the-reference", "cached-keys-one-position-off", "layer-of-the-reference-dropped",
    "cache-read-before-it-is-written", "blue-first", "image-tokens-of-the-reference-by-columns",
    "another-template", "second-best-token-said",
)  # fmt: skip
SHORT: tuple[Fault, ...] = tuple(fault for fault in CATALOGUE if fault.name in _SHORT)
