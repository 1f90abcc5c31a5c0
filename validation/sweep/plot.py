"""The plot of a sweep: size and estimated latency across, error up, what no other beats ringed and joined.

A column for size and one for latency; a line for each set of pictures, and one more where true answers are known.
Colour is the scheme, shape the checkpoint at its image size. Drawn by matplotlib as SVG, with the same bytes for the
same rows. Names are the user's: none is read as mathematics, none left out, and long ones are cut at their beginning.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvlm.publish import replace_file
from validation.sweep.front import family, task
from validation.sweep.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "pareto.svg"
SHAPES = "osD^vP*Xp<>dh8"
WIDE = 5  # times, from which on the axis across is one of powers
LONGEST = 48  # characters of a name in the plot
LEGEND = 110  # characters of all columns of the legend
LEGEND_LINE = 0.21  # inches
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
        own = [row for row in own if row["first_token"] is not None]
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

    looks = _Looks([row for panel in found for row in panel.rows])
    with matplotlib.rc_context({"svg.hashsalt": "fastvlm", "svg.fonttype": "none", "font.size": 9}), _any_letters():
        high = 3.6 * len(found) + LEGEND_LINE * looks.lines
        figure, grid = pyplot.subplots(len(found), 2, figsize=(10, high), squeeze=False, sharey="row")
        for line, panel in zip(grid, found, strict=True):
            for axes, (name, unit, label) in zip(line, ACROSS, strict=True):
                _draw(axes, panel, looks, name, unit)
                axes.set_xlabel(label.format(device=device))
            line[0].set_ylabel(panel.label)
            count = f"{len(panel.rows)} build{'s' * (len(panel.rows) > 1)}"
            line[0].set_title(f"{_short(panel.title)}: {count}", loc="left", parse_math=False)
        looks.explain(figure)
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
        self.names = [*map(_short, self.schemes), *map(_short, self.models), "best: no other beats it"]
        self.columns = max(1, min(len(self.names), LEGEND // (max(map(len, self.names)) + 6)))
        self.lines = -(-len(self.names) // self.columns)

    def mark(self, row: Row) -> dict[str, Any]:
        """How a row is drawn."""
        return {"color": self._colour(row["scheme"]), **self._shape(_model(row))}

    def _colour(self, scheme: str) -> Any:
        from matplotlib import colormaps

        return colormaps["tab10" if len(self.schemes) <= 10 else "tab20"](self.schemes.index(scheme) % 20)

    def _shape(self, model: str) -> dict[str, Any]:
        """Shapes, and when these are used up the same ones hollow."""
        again, place = divmod(self.models.index(model), len(SHAPES))
        return {"marker": SHAPES[place], "linestyle": "", "fillstyle": "none" if again else "full"}

    def explain(self, figure: Figure) -> None:
        """Adds the legend below: schemes, models, and what a ring means."""
        from matplotlib.lines import Line2D

        marks = [
            *({"marker": "o", "color": self._colour(scheme)} for scheme in self.schemes),
            *({"color": "grey", **self._shape(model)} for model in self.models),
            {"marker": "o", "markersize": 10, "markerfacecolor": "none", "color": "black"},
        ]
        handles = [Line2D([], [], **{"linestyle": "", **mark}) for mark in marks]
        legend = figure.legend(  # texts come later: matplotlib leaves out what begins with an underscore
            handles, ["x" * len(name) for name in self.names], loc="outside lower left", frameon=False,
            ncols=self.columns,
        )  # fmt: skip
        for text, name in zip(legend.get_texts(), self.names, strict=True):
            text.set_parse_math(False)
            text.set_text(name)


@contextmanager
def _any_letters() -> Iterator[None]:
    """The SVG holds text: the font of whoever looks at it draws the letters that matplotlib's own lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _model(row: Row) -> str:
    return f"{row['checkpoint']} at {row['image_size']}"


def _draw(axes: Axes, panel: Panel, looks: _Looks, name: str, unit: float) -> None:
    from matplotlib.ticker import LogFormatter

    for row in panel.rows:
        axes.plot(*_at(row, panel, name, unit), **looks.mark(row))
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
        axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # numbers as they are, not 2×10⁰
    if panel.error == "kl":
        axes.set_yscale("log")
    else:
        axes.set_ylim(-0.05, 1.05)
    axes.grid(alpha=0.3)


def _at(row: Row, panel: Panel, name: str, unit: float) -> tuple[float, float]:
    error = float(row[panel.error])
    return float(row[name]) * unit, max(error, LEAST_KL) if panel.error == "kl" else error
