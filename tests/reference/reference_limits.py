"""The limits of the reference's own tests: the model beside goldens, beside transformers and timm, beside its branches.

No build is held to them, so they are not in `validation.limits.TABLE`; they have its form: quantity, metric, limit,
measured value (the worst), reason. Each keeps 3 to 10 times headroom (10 to 20 dB); tests that plant a fault show that
one costs more than that.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from validation.limits import Limit
from validation.metrics import Array, snr_db

ROWS = (
    Limit("golden_encoder", "snr_db", "min", 100.0, 116.7, "float32 on another machine, in another order of sums"),
    Limit("golden_prefill", "snr_db", "min", 105.0, 121.0, "the same, through the small Qwen2"),
    Limit("golden_step", "snr_db", "min", 105.0, 121.8, "the same, one position on a cache"),
    Limit("golden_fault", "snr_db", "max", 45.0, 30.1, "one sign, or one position, wrong; every limit above is higher"),
    Limit("oracle_decoder", "snr_db", "min", 105.0, 121.9, "transformers' Qwen2 and Llama: another order of sums"),
    Limit("oracle_features", "snr_db", "min", 115.0, 130.7, "timm's tower of 40 blocks: another order of sums"),
    Limit("oracle_logits", "snr_db", "min", 105.0, 123.0, "the same, projected and read by the decoder"),
    Limit("oracle_branches", "snr_db", "min", 115.0, 131.5, "timm in float64: fused kernels are rounded to float32"),
    Limit("fused", "snr_db", "min", 120.0, 137.6, "both sides in float64: fused kernels are rounded to float32"),
    Limit("fused_fault", "snr_db", "max", 70.0, 53.8, "one branch tensor off by 0.25; the limit above is higher"),
    Limit("cached", "snr_db", "min", 105.0, 123.2, "one position on a cache beside the whole: another order of sums"),
)
LIMITS = {row.quantity: row for row in ROWS}


def snr(expected: Tensor | Array, found: Tensor | Array) -> float:
    """Signal to noise in dB."""
    return snr_db(np.asarray(expected, np.float64), np.asarray(found, np.float64))


def check(quantity: str, expected: Tensor | Array, found: Tensor | Array, where: str = "") -> float:
    """Holds the SNR of `found` against its row and returns it; prints what a miss, or `make oracles`, should show."""
    assert expected.shape == found.shape
    error = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    value, limit = snr(expected, found), LIMITS[quantity]
    first = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
    print(
        f"{quantity}{' ' * bool(where)}{where}: SNR {value:.1f} dB, limit {limit.words}; "
        f"error at most {error.max():.3g} at {first}, mean {error.mean():.3g}"
    )
    assert limit.holds(value)
    return value
