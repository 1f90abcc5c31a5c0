"""The plots of a report, from its document: error by block, largest value by block, and how sure each token was."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import repeat
from typing import Any

from validation.html_report.plot import Chart, Point, Rule, Scale, Series, bands, places
from validation.html_report.words import as_float, decibel, loss, number

STEP_LABELS = 8  # steps from one label to the next


def short(block: str) -> str:
    """Returns a block's name without what all of its kind begin with."""
    return re.sub(r"^(vision_encoder|decoder)\.", "", block)


def group(block: str) -> str:
    """Returns the stage of the network that a block belongs to, or the layer's number, as a plot labels it."""
    name = short(block)
    found = re.match(r"(?:network|layers)\.(\d+)", name)
    if found:
        return found[1]
    return {"patch_embed": "stem", "conv_exp": "exp", "projector": "proj"}.get(name.split(".")[0], name[:12])


def _points(across: Iterable[float], down: Iterable[float], flagged: Iterable[bool] = repeat(False)) -> list[Point]:
    return [Point(*each) for each in zip(across, down, flagged, strict=False)]


def block_chart(run: dict[str, Any]) -> Chart:
    """Returns SNR by block: the package's, the reference's rounded per op, and the least that is allowed."""
    rows, limit = run["blocks"], as_float(run["limit_db"])
    own = [as_float(row["snr_db"]) for row in rows]
    rounded = [as_float(row["rounded_snr_db"]) for row in rows]
    least = [value - limit for value in rounded]
    scale = Scale([*own, *rounded, *least])
    across = places(len(rows))
    missed = [not as_float(row["loss_db"]) <= limit for row in rows]
    return Chart(
        f"blocks-{run['function']}",
        f"Signal-to-noise ratio by block, {run['function']}",
        f"{len(rows)} blocks in the order of the network. The package begins at {decibel(own[0])} and ends at "
        f"{decibel(own[-1])}, PyTorch rounded per op at {decibel(rounded[-1])}. {_furthest(rows, limit)}",
        scale.ticks(),
        bands([group(row["block"]) for row in rows]),
        (
            Series("limit", "limit", _points(across, map(scale.y, least))),
            Series("yardstick", "yardstick", _points(across, map(scale.y, rounded))),
            Series("package", "package", _points(across, map(scale.y, own), missed)),
        ),
    )


def _furthest(rows: list[dict[str, Any]], limit: float) -> str:
    """Which block is furthest behind fp16 alone, in words."""
    worst = max(rows, key=lambda row: _as_bad(row["loss_db"]))
    behind, name = as_float(worst["loss_db"]), short(worst["block"])
    if behind <= 0:
        return f"No block is behind that; nearest to it is {name}, {loss(-behind)} better."
    return f"Furthest behind that is {name}, by {loss(behind)}; {number(limit)} dB are allowed."


def _as_bad(value: Any) -> float:
    """A number for comparing: what is none is worse than any."""
    found = as_float(value)
    return math.inf if math.isnan(found) else found


def range_chart(run: dict[str, Any], ranges: dict[str, Any]) -> Chart:
    """Returns the largest value by block on a scale of powers of ten, with this project's limit and fp16's end."""
    rows, limit, ceiling = run["blocks"], as_float(ranges["limit"]), as_float(ranges["ceiling"])
    peaks = [as_float(row["peak"]) for row in rows]
    scale = Scale([*peaks, 1.0, 1e5], powers=True)
    largest = max(rows, key=lambda row: _as_bad(row["peak"]))
    points = _points(places(len(rows)), map(scale.y, peaks), [not peak <= limit for peak in peaks])
    return Chart(
        f"range-{run['function']}",
        f"Largest value by block, {run['function']}",
        f"{len(rows)} blocks in the order of the network, on a scale of powers of ten. The largest value is "
        f"{number(largest['peak'])}, in {short(largest['block'])}; the limit is {number(limit)}, and fp16 ends at "
        f"{number(ceiling)}.",
        scale.ticks(),
        bands([group(row["block"]) for row in rows]),
        (Series("largest value", "package", points, joined=False),),
        (
            Rule(scale.y(ceiling), f"fp16 ends at {number(ceiling)}", "ceiling"),
            Rule(scale.y(limit), f"limit {number(limit)}", "limit"),
        ),
        bars=True,
        bar_width=round(100 / len(rows) * 0.64, 3),
    )  # fmt: skip


def step_chart(transcript: dict[str, Any], identity: str) -> Chart:
    """Returns, for each step, how far PyTorch preferred its token, and twice the build's largest logit error."""
    steps = transcript["steps"]
    margins = [as_float(step["margin"]) for step in steps]
    errors = [2 * as_float(step["logit_error"]) for step in steps]
    scale, across = Scale([*margins, *errors], powers=True), places(len(steps))
    flags = [step["pytorch"]["id"] != step["coreml"]["id"] for step in steps]
    closest = max(range(len(steps)), key=lambda place: _as_bad(errors[place] - margins[place]))
    return Chart(
        f"steps-{identity}",
        "How sure PyTorch was of each token, and how far off the build is",
        f"{len(steps)} steps. Where the margin of PyTorch's token is above twice the build's largest error, no other "
        f"token can win. The closest is step {closest + 1}: margin {number(margins[closest])}, twice the error "
        f"{number(errors[closest])}.",
        scale.ticks(),
        bands([str(place - place % STEP_LABELS + 1) for place in range(len(steps))]),
        (
            Series("twice the error", "yardstick", _points(across, map(scale.y, errors)), joined=False),
            Series("margin", "package", _points(across, map(scale.y, margins), flags), joined=False),
        ),
    )  # fmt: skip
