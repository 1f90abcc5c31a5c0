"""Which efficiencies the estimate uses, what they are fitted to, and how far the estimate is from published figures.

Fitted, each to figures of one M1 Max:
- the engine's products: to the paper's three of FastViTHD, the geometric mean of what each asks for;
- the GPU's bandwidth, and the time that each decoder layer costs at each call: to Apple's two of Llama 3.1 with Core
  ML, which give both exactly;
- the GPU's products: to the paper's three prefills, as the first.
Not fitted: the engine's bandwidth, which is what others measured; calls; whatever differs between chips.
The error of a fitted figure is that of leaving it out: it is predicted by the others. Where two figures give two
numbers there is nothing left to leave out, and no error is stated. What stays in M1 Max's engine was chosen by nobody's
measurement and decides much of the encoder's error: `encoder_if` says what it would be with another value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from validation.fit.chips import Speeds, engine_speeds, gpu_speeds
from validation.fit.published import DECODE, ENCODE, FIGURES, PREFILL, Published, chip_of
from validation.fit.timing import Efficiency, stage

MEASURED = 1.0  # of the engine's bandwidth: the table holds what was measured, not what there is
STEPS = 60  # of a bisection between 0.001 and 1,000: far below any digit that is shown


@dataclass(frozen=True)
class Checked:
    """A published figure beside the estimate, both in its unit; fitted: whether it was left out for that.

    error: of the estimate's time, relative: 0.1 is a tenth slower than published. None where nothing can be left out.
    """

    figure: Published
    estimated: float
    fitted: bool
    error: float | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        named = {name: getattr(self.figure, name) for name in ("what", "stage", "chip", "engine", "unit", "source")}
        return {
            **named, "published": self.figure.value, "estimated": self.estimated,
            "left_out": self.fitted, "error": self.error,
        }  # fmt: skip


@cache
def reached(engine: str) -> Efficiency:
    """Returns the efficiencies of "ane" or "gpu"."""
    if engine == "ane":
        return Efficiency(_mean(_fitted(ENCODE)), MEASURED)
    return Efficiency(_mean(_fitted(PREFILL)), gpu_bandwidth())


@cache
def gpu_layer() -> float:
    """Returns the seconds that a decoder layer costs at each call on a GPU, beside its products and bytes."""
    return _line()[1]


@cache
def gpu_bandwidth() -> float:
    """Returns which part of the memory's bandwidth a GPU reads weights with."""
    return _line()[0]


def speeds_of(figure: Published) -> Speeds:
    """Returns what the figure's chip does."""
    return engine_speeds(chip_of(figure)) if figure.engine == "ane" else gpu_speeds(chip_of(figure), gpu_layer())


@cache
def checks() -> tuple[Checked, ...]:
    """Returns every published figure beside what the estimate gives for it."""
    return tuple(_checked(figure) for figure in FIGURES)


def worst(stage_name: str, engine: str) -> float:
    """Returns the largest error, without sign, of the figures that were left out for a stage on an engine."""
    found = [
        each for each in checks() if each.fitted and (each.figure.stage, each.figure.engine) == (stage_name, engine)
    ]
    return max(abs(each.error) for each in found if each.error is not None)


def others(engine: str) -> list[float]:
    """Returns the errors on an engine at the figures that nothing was fitted to."""
    own = [each for each in checks() if not each.fitted and each.figure.engine == engine]
    return [each.error for each in own if each.error is not None]


def in_a_line() -> str:
    """Returns the errors in one sentence, which stands below every answer."""
    engine, gpu = (f"{min(found):+.0%} to {max(found):+.0%}" for found in map(others, ("ane", "gpu")))
    return (
        "checked against published times: the paper's of an M1 Max, each predicted from its others, within "
        f"{worst(ENCODE, 'ane'):.0%} (encoder) and {worst(PREFILL, 'gpu'):.0%} (prefill on the GPU); of those that "
        f"nothing was fitted to, {len(others('ane'))} on the Neural Engine by {engine} and {len(others('gpu'))} on the "
        f"GPU by {gpu}, where + is a longer time than published (docs/choosing.md)"
    )


@cache
def encoder_if(on_chip: int) -> tuple[float, float]:
    """Returns what the encoder's fit would be if `on_chip` bytes stayed in M1 Max's engine, which nobody measured.

    The efficiency of products (above 1 is impossible), and the largest error of a figure that was left out.
    """
    figures = _fitted(ENCODE)
    errors = []
    for figure in figures:
        left = Efficiency(_mean([each for each in figures if each is not figure], on_chip), MEASURED)
        errors.append(abs(_seconds(figure, left, on_chip) / figure.seconds - 1))
    return _mean(figures, on_chip), max(errors)


def _checked(figure: Published) -> Checked:
    seconds = _seconds(figure, reached(figure.engine))
    if not figure.fits:
        return Checked(figure, figure.in_unit(seconds), False, seconds / figure.seconds - 1)
    if figure.stage == DECODE:  # two figures, two numbers
        return Checked(figure, figure.in_unit(seconds), True, None)
    rest = [other for other in _fitted(figure.stage) if other is not figure]
    seconds = _seconds(figure, replace(reached(figure.engine), compute=_mean(rest)))
    return Checked(figure, figure.in_unit(seconds), True, seconds / figure.seconds - 1)


def _fitted(stage_name: str) -> list[Published]:
    return [figure for figure in FIGURES if figure.fits and figure.stage == stage_name]


def _mean(figures: Sequence[Published], on_chip: int | None = None) -> float:
    """The geometric mean of the efficiencies of products that give each figure exactly."""
    return math.exp(sum(math.log(_asked(figure, on_chip)) for figure in figures) / len(figures))


@cache
def _asked(figure: Published, on_chip: int | None = None) -> float:
    """The efficiency of products by which the estimate is the figure, by bisection; on_chip: as in `_seconds`."""
    bandwidth = MEASURED if figure.engine == "ane" else gpu_bandwidth()
    low, high = 1e-3, 1e3
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        if _seconds(figure, Efficiency(middle, bandwidth), on_chip) > figure.seconds:
            low = middle
        else:
            high = middle
    return low


def _seconds(figure: Published, efficiency: Efficiency, on_chip: int | None = None) -> float:
    """The estimate for a figure; on_chip: bytes that stay in its engine, None for what `chips` takes."""
    speeds = speeds_of(figure)
    if on_chip is not None:
        speeds = replace(speeds, on_chip=on_chip)
    works = _works(figure)
    return stage(figure.stage, works, speeds, efficiency, packages=figure.packages, layers=figure.layers).seconds


@cache
def _works(figure: Published) -> tuple[Any, ...]:
    return tuple(figure.works())


@cache
def _line() -> tuple[float, float]:
    """Bandwidth's efficiency and seconds a layer, from two steps of one model whose bytes differ."""
    dense, small = _fitted(DECODE)
    speeds = gpu_speeds(chip_of(dense), 0.0)
    wide, narrow = (
        sum(work.count * work.traffic(speeds.on_chip, speeds.folded) for work in _works(figure))
        for figure in (dense, small)
    )
    slope = (dense.seconds - small.seconds) / (wide - narrow)
    return 1 / (slope * speeds.bandwidth), (dense.seconds - slope * wide) / dense.layers
