"""The limits on the seeded model that `small_export` makes: graphs before Core ML, and packages executed.

No build of a user's is held to them, so they are not in `validation.limits.TABLE`, whose rows a verdict lists one by
one; they have its form: quantity, metric, limit, measured value (the worst), reason. Each keeps 3 to 12 times headroom
(10 to 22 dB of an SNR); tests that plant a fault show that one costs more than that.
"""

from __future__ import annotations

from small_export import snr

from validation.limits import Limit

ROWS = (
    Limit("graph", "snr_db", "min", 110.0, 120.9, "float32 in another order of operations"),
    Limit("graph_norm", "snr_db", "min", 55.0, 65.8, "a bounded norm in float32: eps is not divided along"),
    Limit("fp16_engine_norm", "snr_db", "min", 40.0, 50.0, "a bounded norm whose squares are added in fp16"),
    Limit("fp16_norm", "snr_db", "min", 58.0, 68.5, "a norm in fp16, at sizes whose squares fp16 cannot hold"),
    Limit("encoder_fp32", "snr_db", "min", 105.0, 122.7, "against the graph with fp16 weights: another order"),
    Limit("encoder_fp16", "snr_db", "min", 43.0, 53.1, "every op and weight rounded to fp16"),
    Limit("logits_fp32", "snr_db", "min", 57.0, 67.9, "inputs and rotary angles are fp16 by contract"),
    Limit("logits_fp16", "snr_db", "min", 44.0, 55.0, "every op and weight rounded to fp16"),
    Limit("padding", "snr_db", "min", 110.0, 131.3, "padded rows change nothing but the order of a few sums"),
    Limit("importance", "gain_db", "min", 0.1, 0.306, "output error that importance takes away; least for palettes"),
    Limit("palette_excess", "ratio", "max", 0.2, 0.0528, "error over that of the best of all palettes, of 64 values"),
    Limit("palette_loss", "loss_db", "max", 0.001, 0.00022, "against coremltools' palettes, the best of fp16 values"),
    Limit("int8_gain", "gain_db", "min", 0.02, 0.0721, "over coremltools' linear_symmetric"),
    Limit("int4_gain", "gain_db", "min", 0.1, 0.3246, "over coremltools' linear, with an offset too"),
    Limit("planted_fault", "snr_db", "max", 40.0, 12.9, "a wrong position or angle; every limit above is higher"),
)
LIMITS = {row.quantity: row for row in ROWS}


def check(quantity: str, expected: object, found: object) -> None:
    """Holds the SNR of `found` against its row; prints the value, which pytest shows when the row is missed."""
    value = snr(expected, found)
    print(f"{quantity}: SNR {value:.4g} dB, limit {LIMITS[quantity].words}")
    assert LIMITS[quantity].holds(value)
