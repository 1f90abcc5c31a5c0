"""The page without a browser: its structure, what a screen reader finds, and that it can reach nothing outside."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from markup import Element, parsed

from validation.html_report.page import html_page, style_sheet

KINDS = ("passed", "failed", "alone", "unseen", "onnx")


@pytest.fixture(params=KINDS)
def markup(request: pytest.FixtureRequest, whole: dict[str, Any], failed: dict[str, Any]) -> str:
    """Pages of every kind: good, failed, a language model alone, by a backend that shows nothing inside, as ONNX."""
    documents = {
        "passed": whole,
        "failed": failed,
        "alone": whole
        | {"score": None, "questions": [{**row, "answers": None, "encoder": []} for row in whole["questions"]]},
        "unseen": whole
        | {
            "blocks": [], "ranges": None, "times": None, "backend": "coreml", "verdict": "compared",
            "questions": [{**row, "transcript": None} for row in whole["questions"]],
            "pictures": [dict.fromkeys(row) | {"name": row["name"]} for row in whole["pictures"]],
        },
        "onnx": whole
        | {
            "blocks": [], "ranges": None, "devices": {"note": "it is ONNX", "rows": []}, "backend": "onnx",
            "build": whole["build"] | {"format": "onnx"},
            "placement": [{"file": "VisionEncoder.onnx", "provider": "cpu", "nodes": 200}],
        },
    }  # fmt: skip
    return html_page(documents[request.param])


@pytest.fixture
def top(markup: str) -> Element:
    return parsed(markup)


def test_landmarks_and_headings_in_order(top: Element) -> None:
    (html,) = (child for child in top.children if child.tag == "html")
    assert html.attributes["lang"] == "en"
    for tag in ("header", "nav", "main", "footer", "h1", "title"):
        assert len([each for each in top.all(tag) if not each.inside("svg")]) == 1, tag
    levels = [int(each.tag[1]) for each in top.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels)), levels
    assert all(section.attributes["aria-labelledby"] for section in top.all("section", "article"))


def test_ids_are_unique_and_lead_somewhere(top: Element) -> None:
    ids = [each.attributes["id"] for each in top.all() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    named = [name for each in top.all() for name in each.attributes.get("aria-labelledby", "").split()]
    linked = [each.attributes["href"] for each in top.all("a")]
    assert linked
    assert {*named, *(link.removeprefix("#") for link in linked)} <= set(ids)


def test_tables_say_what_they_are(top: Element) -> None:
    tables = list(top.all("table"))
    assert tables
    for table in tables:
        assert next(table.all("caption")).text.strip()
        assert all(head.attributes.get("scope") in ("col", "row") for head in table.all("th"))
        assert all(next(row.all("th"), None) for row in table.all("tr")), "a row without a head"


def test_drawings_are_described_or_hidden(top: Element) -> None:
    for drawing in top.all("svg"):
        if drawing.attributes.get("aria-hidden") == "true" or drawing.inside("svg"):
            continue
        assert drawing.attributes["role"] == "img"
        title, description = drawing.attributes["aria-labelledby"].split()
        assert next(drawing.all("title")).attributes["id"] == title
        assert next(drawing.all("desc")).attributes["id"] == description
        assert len(next(drawing.all("desc")).text) > 40
        (card,) = [each for each in top.all("div") if drawing in each.all("svg") and _is_card(each)]
        assert next(card.all("table"), None), "the same numbers stand in a table"


def _is_card(element: Element) -> bool:
    classes = element.attributes.get("class", "").split()
    return "card" in classes or "wide" in classes


def test_pictures_have_words(top: Element) -> None:
    assert all(
        each.attributes["alt"] and each.attributes["width"] and each.attributes["height"] for each in top.all("img")
    )


def test_what_scrolls_can_be_reached_by_keys(top: Element) -> None:
    scrolling = [each for each in top.all("div") if "scroll" in each.attributes.get("class", "").split()]
    assert scrolling
    for each in scrolling:
        assert (each.attributes["tabindex"], each.attributes["role"]) == ("0", "region")
        assert each.attributes["aria-label"]
    assert "outline: 3px" in re.search(r":focus-visible \{[^}]*\}", style_sheet())[0]  # type: ignore[index]


def test_nothing_runs_and_nothing_is_loaded(top: Element, markup: str) -> None:
    assert [each.attributes.get("type") for each in top.all("script")] == ["application/json"]
    assert not list(top.all("link", "iframe", "object", "embed", "form", "base"))
    for each in top.all():
        assert not [name for name in each.attributes if name.startswith("on") or name == "style"], each.tag
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data"):
            value = each.attributes.get(name, "#")
            assert value.startswith("#") or (each.tag == "img" and re.match(r"data:image/(png|jpeg);base64,", value))
    assert not re.search(r"url\(|@import|@font-face|expression\(", style_sheet())
    without_data = re.sub(r"<script.*?</script>", "", markup, flags=re.S)
    assert not re.search(r"https?:|//[a-z]", without_data.replace("<!doctype", "")), "an address of another place"


def test_the_policy_allows_this_style_sheet_alone(top: Element) -> None:
    import base64
    import hashlib

    (policy,) = [each.attributes["content"] for each in top.all("meta") if "http-equiv" in each.attributes]
    (style,) = top.all("style")
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    metas = [each.attributes.get("http-equiv", each.attributes.get("charset")) for each in top.all("meta")]
    assert metas[:2] == ["utf-8", "Content-Security-Policy"], "before anything that could be loaded"


def test_what_differs_is_told_in_words_too(failed: dict[str, Any]) -> None:
    top = parsed(html_page(failed))
    marked = [each for each in top.all() if {"tie", "differs"} & {*each.attributes.get("class", "").split()}]
    chips = [each for each in marked if each.tag == "li"]
    assert ["a tie" in each.text for each in chips] == [True, False]
    assert ["a divergence" in each.text for each in chips] == [False, True]
    assert "≈" in chips[0].text
    assert "≠" in chips[1].text
    for row in top.all("tr"):
        if row.attributes.get("class") == "missed":
            assert re.search(r"missed|misses|beyond|differs", row.text), row.text
    assert "40 % against 30 %" in " ".join(top.text.split())


def test_the_numbers_of_the_document_are_on_the_page(whole: dict[str, Any]) -> None:
    text = " ".join(parsed(html_page(whole)).text.split())
    for row in whole["limits"]:
        assert row["reason"] in text
    for question in whole["questions"]:
        assert question["prompt"] in text
        assert question["answers"]["coreml"]["text"] in text
    for run in whole["blocks"]:
        assert f"at most {run['limit_db']:g} dB" in text
    assert whole["build"]["manifest_sha256"] in text
    assert "Passed: every limit holds" in text
    assert "No benchmark" in text


def test_a_block_of_which_nothing_is_right_is_not_exact(failed: dict[str, Any]) -> None:
    rows = [" ".join(row.text.split()) for row in parsed(html_page(failed)).all("tr")]
    (row,) = [row for row in rows if "misses its limit" in row]
    assert row.endswith("∞ dB")
    assert "exact" not in row


def test_tiles_hold_values_to_the_documents_own_limits(document: dict[str, Any]) -> None:
    document["ranges"] |= {"limit": 300, "ceiling": 448}  # as of fp8
    document["ranges"]["largest"][0]["peak"] = 371
    tiles = [" ".join(each.text.split()) for each in next(parsed(html_page(document)).all("dl")).all("div")]
    assert "largest activation, fp16 ends at 448 missed: 371" in tiles


@pytest.mark.parametrize(("ties", "words"), [(1, "besides 1 tie"), (2, "besides 2 ties")])
def test_ties_are_counted_apart(document: dict[str, Any], ties: int, words: str) -> None:
    for step in document["questions"][0]["transcript"]["steps"][:ties]:
        step["coreml"], step["tie"] = {"id": 9, "text": "x", "probability": None}, True
    tiles = [" ".join(each.text.split()) for each in next(parsed(html_page(document)).all("dl")).all("div")]
    assert [tile for tile in tiles if "tokens differ" in tile] == [f"of 48 tokens differ, {words} 0"]


def test_three_pictures_stay_small(reported: Any) -> None:
    assert reported.stat().st_size < 600_000, "243 kB; the limit for three pictures is 2 MB"
