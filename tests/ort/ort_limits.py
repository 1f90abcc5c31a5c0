"""The limits of onnxruntime beside the reference, on the tests' own decoder, in the form of `reference_limits`.

They are apart from those because one of them is of fp16, and lower than what faults cost in float32.
"""

from __future__ import annotations

import numpy as np
from reference_limits import snr

from validation.limits import Limit
from validation.metrics import Array

ROWS = (
    Limit("step", "snr_db", "min", 105.0, 123.0, "one position beside PyTorch: another order of sums"),
    Limit("step_fp16", "snr_db", "min", 55.0, 68.2, "the same with weights and activations in fp16"),
    Limit(
        "reused", "snr_db", "min", 105.0, 121.0, "rows of the cache beside a fresh prefill: sums cut in other places"
    ),
)
LIMITS = {row.quantity: row for row in ROWS}


def check(quantity: str, expected: Array, found: Array) -> None:
    """Holds the SNR of `found` against its row; prints what a miss should show."""
    assert np.shape(expected) == np.shape(found)
    error = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    value, limit = snr(expected, found), LIMITS[quantity]
    first = tuple(map(int, np.unravel_index(error.argmax(), error.shape)))
    print(
        f"{quantity}: SNR {value:.1f} dB, limit {limit.words}; error at most {error.max():.3g} at {first}, "
        f"mean {error.mean():.3g}"
    )
    assert limit.holds(value)
