"""The page: one HTML file made of a report's document, that loads nothing and runs nothing.

Everything is escaped (jinja2's autoescape) but the style sheet and the document, whose signs are escaped here.
Strangers' text is shown without characters that hide or turn, and the policy in the head forbids all but this page's
own style sheet, by its hash, and pictures that are in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from validation.html_report import bars, charts, views, words

DATA = "fastvlm-report"  # the id of the document in the page
POLICY = "default-src 'none'; img-src data:; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def html_page(document: dict[str, Any]) -> str:
    """Returns the page of a document that was checked (`schema.check`)."""
    style = style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return _environment().get_template("report.html").render(
        report=document, title=views.title(document), verdict=views.verdict(document), tiles=views.tiles(document),
        answers=views.answers(document), facts=views.facts(document), waterfalls=bars.waterfalls(document["times"]),
        busy=views.busy(document["times"]),
        sizes=bars.sizes(document["sizes"]), devices=bars.devices(document["devices"]),
        onnx=views.is_onnx(document), ours=views.ours(document), style=style,
        policy=POLICY.format(digest), data=_data(document), data_id=DATA,
    )  # fmt: skip


def style_sheet() -> str:
    """Returns the style sheet."""
    return (files("validation.html_report") / "templates" / "style.css").read_text("utf-8")


@lru_cache(1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("validation.html_report"), autoescape=True, finalize=_seen, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.globals.update(
        block_chart=charts.block_chart, range_chart=charts.range_chart, step_chart=charts.step_chart,
        differing=views.differing, missed_block=missed_block, beyond=beyond, differ_by_blanks=words.differ_by_blanks,
    )  # fmt: skip
    made.filters.update(
        number=words.number, decibel=words.decibel, loss=words.loss, either=words.either, share=words.share,
        size=words.size, seconds=words.seconds,
        bound=words.bound, token=words.token, pieces=words.pieces, short=charts.short,
        groupby_rung=by_rung,
    )  # fmt: skip
    return made


def _seen(value: Any) -> Any:
    """What is written: of text every character, visible; of what a template made, itself."""
    return words.plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def by_rung(rows: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns limits in runs of one rung."""
    return [(rung, list(found)) for rung, found in groupby(rows, key=lambda row: str(row["rung"]))]


def missed_block(row: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether a block is worse than its limit; what is no number is."""
    return not words.as_float(row["loss_db"]) <= words.as_float(run["limit_db"])


def beyond(peak: Any, limit: Any) -> bool:
    """Whether a largest value is beyond its limit; what is no number is."""
    return not words.as_float(peak) <= words.as_float(limit)


def _data(document: dict[str, Any]) -> str:
    """The document as it stands in the page: no sign in it can end the element or begin another."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
