"""A report on the disk: where it may be written, the page or the document alone, and the document read back from both.

The ending decides: `.html` is the page, which holds its document as well, `.json` the document alone. Only a report of
this tool is replaced, and none is written among the files of a build or a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastvlm.errors import OutputError, ReportError, UsageError
from fastvlm.json_file import counted
from fastvlm.manifest import dump
from fastvlm.paths import open_followed
from fastvlm.publish import check_apart, replace_file
from validation.html_report.page import DATA, html_page
from validation.html_report.schema import check, names_itself

HTML, JSON = ".html", ".json"
MOST_BYTES = 64 << 20  # of a report that is read
_BEGIN = re.compile(rf'<script\b[^<>]{{0,200}}\bid="?{DATA}"?[^<>]{{0,200}}>')


def check_place(path: str | Path, apart: Iterable[str | Path | None] = (), option: str = "--report") -> Path:
    """Returns where a report goes, links resolved, before any work; `apart` are builds and checkpoints.

    Raises UsageError for another ending, OutputError for a place that cannot be written, that lies in one of `apart`,
    or that holds something else than a report.
    """
    asked = Path(path).expanduser()
    if asked.suffix.lower() not in (HTML, JSON):
        raise UsageError(
            f"{option} {asked} ends in {asked.suffix or 'nothing'}, expected .html (a page) or .json (data)"
        )
    place, folder = asked.resolve(), asked.resolve().parent
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise OutputError(f"{option} {asked}: expected a folder at {folder}, found {found} there; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{option} {asked}: {folder} may not be written by this user; choose another place")
    check_apart(place, apart, option, replaced=False, kind="build or checkpoint")
    if place.exists() and not _may_be_replaced(place):
        found = "a folder" if place.is_dir() else "a file that is no report of fastvlm"
        raise OutputError(f"{option} {asked} is {found}; choose another name, or remove it yourself")
    return place


def write_report(document: dict[str, Any], path: str | Path, option: str = "--report") -> Path:
    """Writes the page or the document, by the ending of `path`, whole or not at all; raises as `check_place`."""
    place = check_place(path, option=option)
    checked = check(document, str(path))
    replace_file(place, dump(checked) if place.suffix.lower() == JSON else html_page(checked).encode())
    return place


def read_report(path: str | Path) -> dict[str, Any]:
    """Returns the document of a report, .html or .json; raises ReportError where it is none, or damaged."""
    return check(_content(Path(path)), str(path))


def _content(file: Path) -> Any:
    """The document in a file, unchecked; ReportError where it holds none."""
    try:
        with open_followed(file) as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ReportError(f"{file} is larger than {MOST_BYTES >> 20} MiB, no report is; make it again")
        content = counted(data).decode("utf-8")
        return json.loads(content if file.suffix.lower() == JSON else _data_of(content))
    except OSError as problem:
        raise ReportError(f"{file} cannot be read ({problem.strerror}); expected a report, .html or .json") from problem
    except (ValueError, RecursionError) as problem:
        raise ReportError(f"{file} is no report of fastvlm ({str(problem)[:80]}); make it again") from problem


def _may_be_replaced(place: Path) -> bool:
    """Whether a file is empty, or says of itself that it is a report, of whatever schema."""
    if not os.path.isfile(place) or not place.stat().st_size:
        return os.path.isfile(place)
    try:
        return names_itself(_content(place))
    except ReportError:
        return False


def _data_of(page: str) -> str:
    """The document's text in a page; empty where there is none. It holds no "<", and no parser is needed to find it.

    One for HTML takes minutes over a page that a stranger has made of nothing but "<".
    """
    found = _BEGIN.search(page)
    return page[found.end() :].partition("<")[0] if found else ""
