"""How sizes and times of an estimate are written: few digits, in the unit that a reader takes.

It knows nothing of where they come from.
"""

from __future__ import annotations

SMALL = 0.1  # GB: what is less is written in MB


def size(count: int) -> str:
    """Returns bytes as "15.5 GB", "1.52 GB" or "8.0 MB"."""
    held = count / 1e9
    if held < SMALL:
        return f"{count / 1e6:.1f} MB"
    return f"{held:.3g} GB" if held >= 10 else f"{held:.2f} GB"


def duration(seconds: float) -> str:
    """Returns seconds as "242 ms" or "1.06 s": what rounds to 1000 ms is a second."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def rate(value: float) -> str:
    """Returns tokens a second in three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
