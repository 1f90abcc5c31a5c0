"""The limits of `fastvlm fit`: how far closed form and arithmetic may be from packages, and the estimate from figures.

No build is held to them, so they are not in `validation.limits.TABLE`; they have its form: quantity, metric, limit,
measured value (the worst), reason. Each keeps 3 times headroom, but for the errors against published figures, which
are numbers that the page states: those may only get better, or be looked at.
"""

from __future__ import annotations

from validation.limits import Limit

ROWS = (
    Limit("tower_flops", "ratio", "max", 0.021, 6.82e-3, "487 GFLOP, as torch counts them, without the safe norms"),
    Limit("flops", "ratio", "max", 2e-4, 4.71e-5, "a few ops on one number for each row are left out"),
    Limit("bytes", "ratio", "max", 0.01, 3.11e-3, "tiny's prefill: transposes at the door; 0.2 % at 0.5B"),
    Limit("ops_left_out", "ratio", "min", 0.1, 0.327, "of tiny's FLOPs, where one kind of op is left out"),
    Limit("weight_files", "ratio", "max", 0.01, 9.7e-4, "blobs are padded to 64 bytes; below 1e-4 from 0.5B on"),
    Limit("build_total", "ratio", "max", 0.027, 8.74e-3, "programs and tokenizer of tiny, by the rates of 0.5B"),
    Limit("encoder_error", "ratio", "max", 0.1, 0.0818, "the paper's three encoders, each left out"),
    Limit("prefill_error", "ratio", "max", 0.2, 0.182, "the paper's three prefills, each left out"),
    Limit("engine_error", "ratio", "max", 0.33, 0.298, "figures on the engine that nothing is fitted to"),
    Limit(
        "pair_error", "ratio", "max", 0.02, 5.99e-3, "Apple's two steps give bandwidth and layers: softmax waits too"
    ),
)
LIMITS = {row.quantity: row for row in ROWS}


def check(quantity: str, value: float) -> None:
    """Holds a value against its row; prints it, which pytest shows when the row is missed."""
    print(f"{quantity}: {value:.3g}, limit {LIMITS[quantity].words}")
    assert LIMITS[quantity].holds(value)


def off(found: float, expected: float) -> float:
    """The relative difference, without sign."""
    return abs(found / expected - 1)
