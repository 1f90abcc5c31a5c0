"""The plot of `benchmarks/export.py`: seconds and peak memory against bytes of weights, both routes, as one SVG.

Notable choices: the background is transparent, and every colour has a contrast of at least 4:1 to white and to #0d1117,
so one file is readable on light and dark pages; points are labelled where they stand, and a label that had to move up
or down has a line to its point; points of one row of several checkpoints are joined, and the rightmost has the label.
Text stays text, so the file is small and its words can be found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK = "#767d86"
COLOURS = {"ours": "#1f7ae0", "stock": "#c2620a"}
MARKS = {"ours": "o", "stock": "s"}
PANELS = {"seconds": ("seconds, elapsed", 1.0), "memory": ("peak memory, GB", 1e9)}
SHORT = {"encoder-one": "encoder", "encoder-two": "encoder ×2", "language": "language"}
STYLE: Any = {
    "font.family": "sans-serif", "font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "export",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
CLOSE, AWAY, LINE = 14.0, 9.0, 10.5  # points: of one column, from point to label, from one label to the next


@dataclass
class Series:
    """One row by one route, a point for each checkpoint: bytes of weights, and the figures by name."""

    route: str
    key: str
    label: str
    points: list[tuple[float, dict[str, float]]] = field(default_factory=list)


def save(records: list[dict[str, Any]], file: Path) -> None:
    """Writes the SVG; the same records give the same bytes."""
    with plt.rc_context(STYLE):
        figure = drawn(records)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def drawn(records: list[dict[str, Any]]) -> Figure:
    """Returns the figure; to be called under STYLE."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.2))
    figure.subplots_adjust(left=0.06, right=0.985, top=0.82, bottom=0.145, wspace=0.14)
    figure.text(0.06, 0.945, "Time and memory of an export", fontsize=12, weight="bold")
    figure.text(0.35, 0.945, "● fastvlm export", color=COLOURS["ours"], fontsize=10, weight="bold")
    figure.text(
        0.985,
        0.02,
        "encoder ×2: at two sizes; fp16, int8, …: everything, by scheme of the language model",
        ha="right",
        fontsize=8,
    )
    known = list(series(records))
    if any(one.route == "stock" for one in known):
        note = "■ stock route: torch.jit.trace, ct.convert, coremltools.optimize"
        figure.text(0.49, 0.945, note, color=COLOURS["stock"], fontsize=10, weight="bold")
    for axes, (metric, (label, scale)) in zip(panels, PANELS.items(), strict=True):
        panel(axes, known, metric, scale)
        axes.set_title(label, loc="left", fontsize=10, color=INK, pad=30)
        axes.set_xlabel("weights of what is exported, in fp16, GB")
        name_checkpoints(axes, records)
    for axes, (metric, (_, scale)) in zip(panels, PANELS.items(), strict=True):
        write_labels(axes, known, metric, scale)
    return figure


def series(records: list[dict[str, Any]]) -> Iterator[Series]:
    """Yields what has at least one point, rows in the records' order."""
    found: dict[tuple[str, str, str], Series] = {}
    for record in records:
        for row in record["rows"]:
            for route in COLOURS:
                if row[route]:
                    label = SHORT.get(row["key"], row["scheme"])
                    one = found.setdefault((route, row["key"], row["scheme"]), Series(route, row["key"], label))
                    one.points.append((row["weights"], row[route]))
    for one in found.values():
        one.points.sort(key=lambda point: point[0])
        yield one


def panel(axes: Axes, known: list[Series], metric: str, scale: float) -> None:
    """Draws the points and lines of one metric on logarithmic axes."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for one in known:
        xs = [weights / 1e9 for weights, _ in one.points]
        ys = [figures[metric] / scale for _, figures in one.points]
        face = COLOURS[one.route]
        axes.plot(xs, ys, color=face, marker=MARKS[one.route], markersize=5, linewidth=0.8, alpha=0.9, clip_on=False)
    xs = [weights / 1e9 for one in known for weights, _ in one.points] or [1.0]
    ys = [figures[metric] / scale for one in known for _, figures in one.points] or [1.0]
    span = math.log10(max(xs) / min(xs))
    room = 10 ** max(0.2, 0.16 * span)  # for the labels beside the outermost points
    axes.set_xlim(min(xs) / room, max(xs) * room)
    axes.set_ylim(min(ys) / 1.35, max(ys) * 1.35)
    for axis, low, high in ((axes.xaxis, *axes.get_xlim()), (axes.yaxis, *axes.get_ylim())):
        axis.set_major_locator(FixedLocator(ticks(low, high)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    axes.set_axisbelow(True)


def ticks(low: float, high: float) -> list[float]:
    """Returns round numbers between two, about three to nine of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)):
        found = [float(f"{step}e{power}") for power in powers for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            return found
    return [float(f"{low * (high / low) ** (part / 3):.2g}") for part in range(4)]


def name_checkpoints(axes: Axes, records: list[dict[str, Any]]) -> None:
    """Writes each checkpoint's name above the weights of its largest row, neighbours at two heights."""
    for number, record in enumerate(records):
        largest = max((row["weights"] for row in record["rows"]), default=0) / 1e9
        if largest:
            axes.axvline(largest, color=INK, alpha=0.35, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
            axes.annotate(
                record["name"], (largest, 1), (0, 4 + 11 * (number % 2)), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="bottom", fontsize=8.5,
            )  # fmt: skip


def write_labels(axes: Axes, known: list[Series], metric: str, scale: float) -> None:
    """Labels the last point of each series, those above each other as one column.

    The language model's is a little to the left of everything's, so its label goes to the left where there is room.
    """
    assert isinstance(axes.figure, Figure)
    pixel = axes.figure.dpi / 72
    ends = []
    for one in known:
        weights, figures = one.points[-1]
        at = (weights / 1e9, figures[metric] / scale)
        x, y = axes.transData.transform(at) / pixel
        ends.append((one, at, float(x), float(y)))
    others = [end[2] for end in ends if end[0].key != "language"]
    left = [end for end in ends if end[0].key == "language" and all(abs(end[2] - x) > AWAY for x in others)]
    for side, group in ((1, [end for end in ends if end not in left]), (-1, left)):
        here = sorted(group, key=lambda end: end[2])
        while here:
            column = [end for end in here if end[2] - here[0][2] < CLOSE]
            here = here[len(column) :]
            edge = max(side * end[2] for end in column) + AWAY
            column.sort(key=lambda end: end[3])
            for (one, at, x, y), height in zip(column, spread([end[3] for end in column], LINE), strict=True):
                write(axes, one, at, (side * edge - x, height - y))


def write(axes: Axes, one: Series, at: tuple[float, float], offset: tuple[float, float]) -> None:
    """Writes one label at `offset` (points) from its point, with a line where it is not beside it."""
    colour = COLOURS[one.route]
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 1, "shrinkB": 3}
    axes.annotate(
        one.label, at, offset, textcoords="offset points", va="center", ha="left" if offset[0] > 0 else "right",
        fontsize=8, color=colour, arrowprops=line if abs(offset[1]) > LINE / 3 else None,
    )  # fmt: skip


def spread(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights as little as it takes to have `gap` between neighbours, by joining those too close."""
    groups: list[tuple[float, int]] = []  # centre, members
    for height in heights:
        centre, count = height, 1
        while groups and centre - groups[-1][0] < gap * (count + groups[-1][1]) / 2:
            before, members = groups.pop()
            centre = (centre * count + before * members) / (count + members)
            count += members
        groups.append((centre, count))
    return [centre + gap * (index - (count - 1) / 2) for centre, count in groups for index in range(count)]
