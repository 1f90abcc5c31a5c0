"""Plots: values stand where their scale says, labels do not touch each other, and nothing leaves the field."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from validation.html_report.charts import block_chart, group, range_chart, step_chart
from validation.html_report.plot import FIELD, FOOT, HEIGHT, LETTER, TOP, Scale, bands, places
from validation.html_report.words import decibel, either, loss, number, seconds, share, size


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


@pytest.mark.parametrize("layers", [3, 12, 23, 24, 28, 32, 80])
def test_numbered_places_are_labelled_in_equal_steps(layers: int) -> None:
    found = [band.label for band in bands([*map(str, range(layers)), "norm", "head"])]
    told = [place for place, label in enumerate(found) if label.isdigit()]
    assert told[0] == 0
    assert len(told) >= 3
    assert len({after - before for before, after in pairwise(told)}) == 1, told
    assert [int(found[place]) for place in told] == told


def blocks(*losses: float | str) -> dict[str, object]:
    rows = [
        {"block": f"decoder.layers.{at}", "snr_db": 60, "rounded_snr_db": 61, "loss_db": value}
        for at, value in enumerate(losses)
    ]
    return {"part": "language", "function": "decode", "limit_db": 6, "blocks": rows}


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((1, 2.5, 0), "Furthest behind that is layers.1, by 2.5 dB; 6 dB are allowed."),
        ((1, "inf", 2), "Furthest behind that is layers.1, by ∞ dB;"),
        ((1, "nan", 2), "Furthest behind that is layers.1, by no number;"),
        (("nan", 2), "Furthest behind that is layers.0, by no number;"),
        ((-3, -1), "No block is behind that; nearest to it is layers.1, 1.0 dB better."),
        (("-inf", "-inf"), "No block is behind that; nearest to it is layers.0, ∞ dB better."),
    ],
)
def test_the_worst_block_is_named_in_words(losses: tuple[float | str, ...], said: str) -> None:
    """A block of which nothing is right is no "exact" one, and what is no number is worse than any."""
    assert said in block_chart(blocks(*losses)).text


def test_the_limit_stands_below_what_fp16_alone_has() -> None:
    chart = block_chart(blocks(1, 7))
    limit, yardstick, package = chart.series
    heights = [[point.y for point in series.points] for series in (yardstick, package, limit)]
    # pixels from the top: 61 dB, 60 dB, 55 dB
    assert all(one < two < three for one, two, three in zip(*heights, strict=True))
    assert [point.flagged for point in package.points] == [False, True]


def test_what_is_no_number_is_the_largest_value() -> None:
    rows = [{"block": "a", "peak": 5}, {"block": "b", "peak": "nan"}, {"block": "c", "peak": 7}]
    chart = range_chart({"function": "f", "blocks": rows}, {"limit": 32768, "ceiling": 65504})
    assert "largest value is no number, in b" in chart.text


def test_steps_are_drawn_against_twice_the_error() -> None:
    def step(margin: float | str, error: float, differs: bool) -> dict[str, object]:
        return {"margin": margin, "logit_error": error, "pytorch": {"id": 1}, "coreml": {"id": 2 if differs else 1}}

    chart = step_chart({"steps": [step(4, 0.5, False), step(1, 0.5, True), step(10, 5, False)]}, "1")
    errors, margins = chart.series
    assert [error.y == margin.y for error, margin in zip(errors.points, margins.points, strict=True)] == [
        False, True, True,
    ]  # fmt: skip
    assert [point.flagged for point in margins.points] == [False, True, False]
    assert "The closest is step 2: margin 1, twice the error 1." in chart.text
    assert "The closest is step 1: margin no number" in step_chart({"steps": [step("nan", 1, False)]}, "1").text


def test_a_value_beyond_the_limit_is_flagged() -> None:
    rows = [{"block": "a", "peak": 32768}, {"block": "b", "peak": 32769}, {"block": "c", "peak": "inf"}]
    chart = range_chart({"function": "f", "blocks": rows}, {"limit": 32768, "ceiling": 65504})
    assert [point.flagged for point in chart.series[0].points] == [False, True, True]
    assert "largest value is ∞, in c" in chart.text


def test_numbers_in_words() -> None:
    assert [number(value) for value in (0, 7, 1234.0, 0.01234, 5e-5, -2.5, "inf", "nan")] == [
        "0", "7", "1,234", "0.0123", "5×10⁻⁵", "−2.5", "∞", "no number",
    ]  # fmt: skip
    assert [number(value) for value in (999.4, 2436.3, -55_630.4, 123_456_789.5, 1.5e9, 2e300)] == [
        "999", "2,440", "−55,600", "123,000,000", "1.5×10⁹", "2×10³⁰⁰",
    ]  # fmt: skip
    assert [loss(value) for value in (1.84, -3, "inf", "-inf", "nan")] == [
        "1.8 dB", "−3.0 dB", "∞ dB", "−∞ dB", "no number",
    ]  # fmt: skip
    assert [either(counts) for counts in ([8], [8, 16], [36, 48, 64], [])] == ["8", "8 or 16", "36, 48 or 64", "?"]
    assert [decibel(value) for value in (78.04, -3, "inf", "-inf")] == ["78.0 dB", "−3.0 dB", "exact", "no number"]
    assert [size(count) for count in (7, 3_560_000, 15_500_000_000)] == ["7 B", "3.56 MB", "15.5 GB"]
    assert [seconds(value) for value in (0.0123, 2.5, "nan")] == ["12.3 ms", "2.5 s", "no number"]
    assert [share(value) for value in (0.5, 1e-5, 0, "nan")] == ["50 %", "< 0.1 %", "0 %", "no number"]
