"""Whatever a checkpoint's answer, a file's name or a manifest says, the page shows it and does nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from markup import parsed

from validation.html_report import read_report, write_report
from validation.html_report.page import html_page
from validation.html_report.words import plain, token

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "<!--", "-->", "</style>", "]]>", "{{ 7 * 7 }}", "{% include 'head.html' %}", "javascript:alert(1)",
    "&lt;b&gt; &amp;",
    "' onmouseover='alert(1)", "\u202egnp.exe", "a\u0000b\u001b[31m", "\u2028\u2029\ufeff", "x" * 3000, "\u202e\u200f",
)  # fmt: skip


def poisoned(value: Any, text: str) -> Any:
    """The document with `text` in the place of every free text."""
    if isinstance(value, dict):
        return {key: poisoned(each, text) if key not in FIXED else each for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each, text) for each in value]
    return text if isinstance(value, str) and value not in ("inf", "-inf", "nan") else value


FIXED = {
    "schema",
    "format",
    "tool",
    "verdict",
    "data",
    "type",
    "part",
    "from",
    "of",
    "bound",
    "measured_by",
    "kind",
    "fits",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_every_field_is_shown_and_none_becomes_markup(failed: dict[str, Any], text: str, tmp_path: Path) -> None:
    document = poisoned(failed, text)
    file = write_report(document, tmp_path / "report.html")
    top = parsed(file.read_text("utf-8"))
    innocent = parsed(html_page(failed))
    tags = {each.tag for each in top.all()}
    assert tags <= {each.tag for each in innocent.all()} | {"br"}
    assert len([*top.all("script")]) == len([*top.all("style")]) == 1
    assert not [each for each in top.all() if any(name.startswith("on") or name == "style" for name in each.attributes)]
    assert {each.attributes["src"][:11] for each in top.all("img")} == {"data:image/"}
    assert plain(text).strip() in plain(" ".join(each.text for each in top.all("bdi")))
    assert read_report(file) == json.loads(json.dumps(document)), "and the data in it is what it was"
    outside = file.read_text("utf-8").split("<script")[0]
    assert not [sign for sign in outside if sign != "\n" and not plain(sign) == sign], "a character that hides"


def test_what_cannot_be_seen_is_shown() -> None:
    assert plain("a\u202eb\u0000\U000e0041") == "a\\u202eb\\u0000\\ue0041"
    assert plain("é 中 👩‍👩 ✓\n") == "é 中 👩‍👩 ✓\n"
    assert [token(text) for text in ("", " ", "  ", " word", "\n", "a\tb")] == ["∅", "␣", "␣␣", "word", "⏎", "a⇥b"]
    assert token(" word", blanks=True) == "␣word"


def test_a_token_that_differs_by_a_blank_alone_shows_it(document: dict[str, Any]) -> None:
    step = document["questions"][0]["transcript"]["steps"][1]
    step["pytorch"]["text"], step["coreml"] = " red", {"id": 9, "text": "red", "probability": None}
    chips = [
        each.text for each in parsed(html_page(document)).all("li") if "differs" in each.attributes.get("class", "")
    ]
    assert "␣red" in chips[0]
    assert chips[0].replace("␣red", "").count("red") == 1


def test_names_of_files_that_are_no_utf8(tmp_path: Path) -> None:
    """A file name may hold bytes that no text has; Python calls them halves of a pair."""
    from validation.html_report.provenance import text

    assert text("a\udcffb") == "a?b"
