"""How sizes and times are written: no power of ten, and no unit that is too large or too small."""

from __future__ import annotations

import pytest

from validation.fit.words import duration, rate, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (8_041_659, "8.0 MB"), (99_900_000, "99.9 MB"), (100_000_000, "0.10 GB"), (1_524_300_000, "1.52 GB"),
        (9_999_000_000, "10.00 GB"), (15_490_000_000, "15.5 GB"), (128_000_000_000, "128 GB"),
    ],
)  # fmt: skip
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.000371, "0.371 ms"), (0.2418, "242 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (1.0, "1 s"), (3.0629, "3.06 s")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("value", "words"), [(2.124, "2.12"), (29.84, "29.8"), (99.96, "100"), (5516.2, "5516")])
def test_rates(value: float, words: str) -> None:
    assert rate(value) == words
