"""Plots: values stand where their scale says, labels do not touch each other, and nothing leaves the field."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from validation.html_report.charts import group, range_chart
from validation.html_report.plot import FIELD, FOOT, HEIGHT, LETTER, TOP, Scale, bands, places
from validation.html_report.words import decibel, number, seconds, share, size


def test_a_linear_scale() -> None:
    scale = Scale([52.3, 69.9])
    assert [tick.label for tick in scale.ticks()] == ["50", "55", "60", "65", "70"]
    assert (scale.y(50), scale.y(70)) == (HEIGHT - FOOT, TOP)
    assert scale.y(60) == (HEIGHT - FOOT + TOP) / 2
    assert scale.y(math.inf) == TOP
    assert scale.y(-math.inf) == scale.y(math.nan) == HEIGHT - FOOT


def test_a_scale_of_powers() -> None:
    scale = Scale([0.02, 65504], powers=True)
    assert [tick.label for tick in scale.ticks()] == ["10⁻²", "1", "100", "10,000"]
    assert scale.y(0) == HEIGHT - FOOT
    assert scale.y(10) == pytest.approx((scale.y(1) + scale.y(100)) / 2, abs=0.1)


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.inf, -math.inf], [5.0], [0.0, 0.0], [1e300, -1e300], [1e-300]]
)
@pytest.mark.parametrize("powers", [False, True])
def test_a_scale_of_anything(values: list[float], powers: bool) -> None:
    scale = Scale(values, powers)
    for value in [*values, 0.0, 1.0, math.nan]:
        assert TOP <= scale.y(value) <= HEIGHT - FOOT
    assert 2 <= len(scale.ticks()) <= 7


def test_labels_fit_a_phone() -> None:
    groups = [group(f"vision_encoder.network.{stage}.{block}") for stage in range(11) for block in range(3)]
    found = [band for band in bands(["stem", *groups, "proj"]) if band.label]
    assert len(found) >= 5
    ends = [
        (band.middle - 50 * LETTER * len(band.label) / FIELD, band.middle + 50 * LETTER * len(band.label) / FIELD)
        for band in found
    ]
    assert all(0 <= left and right <= 100 for left, right in ends)
    assert all(right < left for (_, right), (left, _) in pairwise(ends))
    assert not any(band.even for band in bands(["0", "1", "2"])), "no stripes where every place has a name of its own"
    assert places(4) == [12.5, 37.5, 62.5, 87.5]


def test_a_value_beyond_the_limit_is_flagged() -> None:
    rows = [{"block": "a", "peak": 32768}, {"block": "b", "peak": 32769}, {"block": "c", "peak": "inf"}]
    chart = range_chart({"function": "f", "blocks": rows}, {"limit": 32768, "ceiling": 65504})
    assert [point.flagged for point in chart.series[0].points] == [False, True, True]
    assert "largest value is ∞, in c" in chart.text


def test_numbers_in_words() -> None:
    assert [number(value) for value in (0, 7, 1234.0, 0.01234, 5e-5, -2.5, "inf", "nan")] == [
        "0", "7", "1,234", "0.0123", "5×10⁻⁵", "−2.5", "∞", "no number",
    ]  # fmt: skip
    assert [decibel(value) for value in (78.04, -3, "inf", "-inf")] == ["78.0 dB", "−3.0 dB", "exact", "no number"]
    assert [size(count) for count in (7, 3_560_000, 15_500_000_000)] == ["7 B", "3.56 MB", "15.5 GB"]
    assert [seconds(value) for value in (0.0123, 2.5, "nan")] == ["12.3 ms", "2.5 s", "no number"]
    assert [share(value) for value in (0.5, 1e-5, 0, "nan")] == ["50 %", "< 0.1 %", "0 %", "no number"]
