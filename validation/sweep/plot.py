"""The plot of a sweep: size and estimated latency across, error up, what no other beats ringed and joined.

A column for size and one for latency; a line for each set of pictures, and one more where true answers are known.
Colour is the scheme, shape the checkpoint at its image size. Drawn by matplotlib as SVG, with the same bytes for the
same rows.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.publish import replace_file
from validation.sweep.front import family, task
from validation.sweep.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "pareto.svg"
SHAPES = "osD^vP*XhphH<>"
WIDE = 5  # times, from which on the axis across is one of powers
LEAST_KL = 1e-9  # where a KL of 0 stands on a scale of powers
ACROSS = (("bytes", 1e-6, "size, MB"), ("first_token", 1e3, "first token, ms, estimated for {device}"))


@dataclass(frozen=True)
class Panel:
    """One line of the plot: the rows of a set of pictures, one error of theirs, and whose front is drawn."""

    title: str
    rows: list[Row]
    error: str
    label: str
    front: str
    group: Any


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Returns what is drawn: for each set of pictures the KL, and the wrong answers where true ones are known."""
    found = []
    for images in dict.fromkeys(row["images"] for row in rows):
        own = [row for row in rows if row["images"] == images]
        if told := [row for row in own if row["kl"] is not None]:
            found.append(Panel(images, told, "kl", "KL to its own checkpoint, nats", "front", family))
        if asked := [row for row in own if row["wrong"] is not None]:
            found.append(Panel(images, asked, "wrong", "share of wrong answers", "task_front", task))
    return found


def write_plot(place: Path, rows: Sequence[Row], device: str) -> Path | None:
    """Draws the flat rows of a table into a sweep's folder and returns the file; None where no case has a result."""
    found = panels(rows)
    if not found:
        return None
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "fastvlm", "svg.fonttype": "none", "font.size": 9}):
        figure, grid = pyplot.subplots(len(found), 2, figsize=(10, 3.6 * len(found)), squeeze=False, sharey="row")
        looks = _Looks([row for row in rows if any(row in panel.rows for panel in found)])
        for line, panel in zip(grid, found, strict=True):
            for axes, (name, unit, label) in zip(line, ACROSS, strict=True):
                _draw(axes, panel, looks, name, unit)
                axes.set_xlabel(label.format(device=device))
            line[0].set_ylabel(panel.label)
            line[0].set_title(f"{panel.title}: {len(panel.rows)} builds", loc="left")
        figure.legend(handles=looks.handles(), loc="outside right upper", frameon=False)
        figure.set_layout_engine("constrained")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    replace_file(place / FILE, drawn.getvalue())
    return place / FILE


class _Looks:
    """Colours of schemes, shapes of checkpoints at their image sizes, in the order of the rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.schemes = list(dict.fromkeys(row["scheme"] for row in rows))
        self.models = list(dict.fromkeys(_model(row) for row in rows))

    def colour(self, scheme: str) -> str:
        return f"C{self.schemes.index(scheme) % 10}"

    def shape(self, row: Row) -> str:
        return SHAPES[self.models.index(_model(row)) % len(SHAPES)]

    def handles(self) -> list[Any]:
        """The legend: schemes, models, and what a ring means."""
        from matplotlib.lines import Line2D

        def mark(label: str, **look: Any) -> Line2D:
            return Line2D([], [], linestyle="", label=label, **look)

        return [
            *(mark(scheme, marker="o", color=self.colour(scheme)) for scheme in self.schemes),
            *(mark(model, marker=SHAPES[place % len(SHAPES)], color="grey") for place, model in enumerate(self.models)),
            mark("no other beats it", marker="o", markersize=10, markerfacecolor="none", color="black"),
        ]


def _model(row: Row) -> str:
    return f"{row['checkpoint']} at {row['image_size']}"


def _draw(axes: Axes, panel: Panel, looks: _Looks, name: str, unit: float) -> None:
    for row in panel.rows:
        axes.plot(*_at(row, panel, name, unit), looks.shape(row), color=looks.colour(row["scheme"]))
    for group in dict.fromkeys(map(panel.group, panel.rows)):
        best = sorted(
            _at(row, panel, name, unit) for row in panel.rows if panel.group(row) == group and row[panel.front]
        )
        axes.plot(*zip(*best, strict=True), "-", color="0.75", zorder=0)
        axes.plot(*zip(*best, strict=True), "o", markersize=10, markerfacecolor="none", color="black", linewidth=0.8)
    places = [_at(row, panel, name, unit)[0] for row in panel.rows]
    if max(places) > WIDE * min(places):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    if panel.error == "kl":
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.05, 1.05)
    axes.grid(alpha=0.3)


def _at(row: Row, panel: Panel, name: str, unit: float) -> tuple[float, float]:
    error = float(row[panel.error])
    return float(row[name]) * unit, max(error, LEAST_KL) if panel.error == "kl" else error
