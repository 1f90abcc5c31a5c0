"""The report to look at: one self-contained HTML page of a validation, and the same data as JSON.

    document = report_of(verdict, comparison, samples, blocks)    # plain data, schema 0.2 (docs/report.md)
    write_report(document, "report.html")                         # or .json; read_report reads either back

document.py      all of it, from transcripts.py, values.py, pictures.py, provenance.py, devices.py, times.py
schema.py        its fields and their types; files.py: where it may be written, writing and reading
page.py          the page: templates/ with what views.py, charts.py and bars.py work out; plot.py, words.py

It judges nothing: verdict and limits are those of the validation.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "check_place": "validation.html_report.files",
    "read_report": "validation.html_report.files",
    "report_of": "validation.html_report.document",
    "with_profile": "validation.html_report.times",
    "write_report": "validation.html_report.files",
}
__all__ = ["check_place", "read_report", "report_of", "with_profile", "write_report"]


def __getattr__(name: str) -> Any:
    """Loads a name when it is used: a validation without a report needs no templates."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'validation.html_report' has no attribute {name!r}")
