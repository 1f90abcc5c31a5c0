"""The limits of onnxruntime beside the reference, on the tests' own decoder; rows as in `validation.limits.TABLE`."""

from __future__ import annotations

import numpy as np

from validation.limits import Limit
from validation.metrics import Array, snr_db

ROWS = (
    Limit("ort_step", "snr_db", "min", 105.0, 123.0, "float32 beside PyTorch: another order of sums"),
    Limit("ort_step_fp16", "snr_db", "min", 57.0, 68.2, "weights and activations in fp16"),
    Limit(
        "ort_reused", "snr_db", "min", 105.0, 121.0, "rows from the cache beside a fresh prefill: sums cut elsewhere"
    ),
    Limit("ort_stale", "snr_db", "max", 60.0, 20.0, "one row of the cache another's; every limit in float32 is higher"),
)
LIMITS = {row.quantity: row for row in ROWS}


def check(quantity: str, expected: Array, found: Array) -> None:
    """Holds the SNR of `found` against its row; prints what a miss should show."""
    assert np.shape(expected) == np.shape(found)
    error = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    value, limit = snr_db(np.asarray(expected, np.float64), np.asarray(found, np.float64)), LIMITS[quantity]
    first = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
    print(f"{quantity}: SNR {value:.1f} dB, limit {limit.words}; error at most {error.max():.3g} at {first}")
    assert limit.holds(value)
