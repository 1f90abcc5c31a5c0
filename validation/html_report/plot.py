"""Plots as numbers for the template: where points, bars, lines and labels stand; no drawing and no text of its own.

Across, everything is in percent of a plot's width, down in pixels of its height: so a plot fits a phone and a desk
without being scaled, and its letters keep their size. `FIELD` is the narrowest width that labels are laid out for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from validation.html_report.words import raised

HEIGHT, TOP, FOOT = 232, 16, 24  # pixels: of a plot, above its field, below it
MANY = 32  # points beyond which markers are small
LARGEST = 1e12  # that a scale reaches; NaN and infinities are beyond it
FIELD, LETTER = 250, 6.6  # pixels: of the narrowest field, of a letter
STRIDES = (1, 2, 4, 5, 10, 20, 50)  # places from one label to the next


@dataclass(frozen=True)
class Tick:
    """A labelled height."""

    y: float
    label: str


@dataclass(frozen=True)
class Rule:
    """A line across: a limit. `kind` is its class in the style sheet."""

    y: float
    label: str
    kind: str


@dataclass(frozen=True)
class Band:
    """A stripe behind the points, in percent; the label is empty where it would not fit."""

    x: float
    width: float
    label: str
    even: bool

    @property
    def middle(self) -> float:
        """Where the label stands."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class Point:
    """A value: percent across, pixels down; `flagged` marks one that misses its limit."""

    x: float
    y: float
    flagged: bool = False


@dataclass(frozen=True)
class Series:
    """Points with a name; kind is their class: "package" are circles, "yardstick" squares."""

    name: str
    kind: str
    points: Sequence[Point]
    joined: bool = True

    @property
    def segments(self) -> list[tuple[Point, Point]]:
        """Neighbours that a line joins."""
        return list(zip(self.points, self.points[1:], strict=False)) if self.joined else []

    @property
    def flagged(self) -> bool:
        """Whether any point misses its limit."""
        return any(point.flagged for point in self.points)


@dataclass(frozen=True)
class Chart:
    """One plot; title and text are what is read aloud in its place."""

    id: str
    title: str
    text: str
    ticks: Sequence[Tick]
    bands: Sequence[Band]
    series: Sequence[Series] = ()
    rules: Sequence[Rule] = ()
    bars: bool = False
    bar_width: float = 0.0
    height: int = field(default=HEIGHT)

    @property
    def dot(self) -> float:
        """Half the width of a marker, in pixels: smaller where there are many."""
        return 3.5 if all(len(series.points) <= MANY for series in self.series) else 2.5

    @property
    def floor(self) -> int:
        """Where the field ends, in pixels."""
        return self.height - FOOT


class Scale:
    """Values to pixels, linear or by powers of ten; what lies outside, infinities too, stands at the edge."""

    def __init__(self, values: Sequence[float], powers: bool = False) -> None:
        self.powers = powers
        seen = [each for value in values if abs(each := self._at(value)) < LARGEST] or [0.0, 1.0]
        self.step = 1.0 if powers else _step(max(seen) - min(seen))
        self.low = math.floor(min(seen) / self.step) * self.step
        self.high = max(math.ceil(max(seen) / self.step) * self.step, self.low + self.step)

    def _at(self, value: float) -> float:
        if not self.powers:
            return value
        return math.log10(value) if value > 0 else -math.inf

    def y(self, value: float) -> float:
        """Returns pixels from the top."""
        at = self._at(value)
        share = 0.0 if math.isnan(at) else (min(max(at, self.low), self.high) - self.low) / (self.high - self.low)
        return round(HEIGHT - FOOT - share * (HEIGHT - FOOT - TOP), 1)

    def ticks(self) -> list[Tick]:
        """Returns the labelled heights, at most seven."""
        count = round((self.high - self.low) / self.step)
        every = -(-count // 6)
        values = [self.low + place * self.step for place in range(0, count + 1, every)]
        return [Tick(self.y(10**value if self.powers else value), self._label(value)) for value in values]

    def _label(self, value: float) -> str:
        if not self.powers:
            return f"{value:g}"
        exponent = round(value)
        return f"{10**exponent:,}" if 0 <= exponent <= 5 else "10" + raised(exponent)


def _step(span: float) -> float:
    """A round step that cuts a span into four to eight parts."""
    if span <= 0:
        return 5.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(power * each for each in (1, 2, 5, 10) if span / (power * each) <= 6)


def places(count: int) -> list[float]:
    """Returns where `count` values stand, in percent."""
    return [round(100 * (place + 0.5) / count, 3) for place in range(count)]


def bands(groups: Sequence[str]) -> list[Band]:
    """Returns a stripe for each run of equal names, with its label where it fits and touches no other.

    Where every place has a name of its own, no stripe is drawn.
    """
    striped = any(one == two for one, two in pairwise(groups))
    each, start = 100 / len(groups), 0
    found: list[Band] = []
    for name, run in groupby(groups):
        count = len(list(run))
        even = striped and len(found) % 2 == 0
        found.append(Band(round(start * each, 3), round(count * each, 3), name, even))
        start += count
    shown = _fitting(found, range(len(found))) if striped else _evenly(found)
    return [band if place in shown else replace(band, label="") for place, band in enumerate(found)]


def _fitting(found: Sequence[Band], asked: Iterable[int]) -> set[int]:
    """Those of the bands `asked` for whose labels fit, one after the other."""
    shown, free = set(), -50 * LETTER / FIELD  # half a letter may stand out
    for place in asked:
        wide = 100 * LETTER * len(found[place].label) / FIELD
        left = found[place].middle - wide / 2
        if free <= left and left + wide <= 100:
            shown.add(place)
            free = left + wide + 100 * LETTER / FIELD
    return shown


def _evenly(found: Sequence[Band]) -> set[int]:
    """Every second, fourth, fifth … of numbered places, in equal steps, and names behind them where they fit."""
    numbered = [place for place, band in enumerate(found) if band.label.isdigit()]
    named = {place for place, band in enumerate(found) if not band.label.isdigit()}
    for step in STRIDES:
        asked = numbered[::step]
        shown = _fitting(found, sorted({*asked, *named}))
        if shown.issuperset(asked):
            return shown
    return _fitting(found, range(len(found)))
