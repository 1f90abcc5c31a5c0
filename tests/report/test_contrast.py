"""Contrast by WCAG 2.1, computed from the style sheet's own colours, in both schemes: text 4.5, drawings 3."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from validation.html_report.page import style_sheet

GROUNDS = ("page", "card", "sunk")
WASHES = ("good-wash", "bad-wash", "tie-wash")
TEXT = [
    *((ink, ground) for ink in ("text", "soft") for ground in (*GROUNDS, *WASHES)),
    *(("package", ground) for ground in ("page", "card")),  # links, summaries
    *((f"{word}", f"{word}-wash") for word in ("good", "bad", "tie")),  # badges, chips, the verdict
    ("bad", "card"),  # labels of limits in plots, tiles
]
DRAWN = [
    *((ink, ground) for ink in ("package", "yardstick", "bad") for ground in ("card", "sunk")),
    *(("focus", ground) for ground in (*GROUNDS, *WASHES)),
    *((f"{word}-wash", word) for word in ("good", "bad", "tie")),  # the sign in the verdict's disc
]


def schemes() -> dict[str, dict[str, str]]:
    """The custom properties of `:root`, light, and as the media query for dark replaces them."""
    light, dark = re.findall(r":root \{(.*?)\}", style_sheet(), re.S)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(two)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_measure_is_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("pairs", "least"), [(TEXT, 4.5), (DRAWN, 3.0)])
def test_contrast(scheme: str, pairs: list[tuple[str, str]], least: float) -> None:
    colours = schemes()[scheme]
    found = {(ink, ground): contrast(colours[ink], colours[ground]) for ink, ground in pairs}
    assert {pair: round(value, 2) for pair, value in found.items() if value < least} == {}


def test_every_colour_is_replaced_in_the_dark_and_none_stands_outside() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", style_sheet(), re.S)
    names = [set(re.findall(r"--([\w-]+):", block)) for block in (light, dark)]
    assert names[0] == names[1]
    rest = re.sub(r":root \{.*?\}", "", style_sheet(), flags=re.S)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgb|hsl|(?<!-)\b(?:white|black|red|blue|green|grey|gray)\b(?!-)", rest)
    drawn = files("validation.html_report") / "templates" / "marks.html"
    assert set(re.findall(r"var\(--([\w-]+)\)", rest + drawn.read_text("utf-8"))) == names[0]
