"""Every number of the document stands on the page under its own head, and every drawing where its scale puts it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from markup import Element, parsed

from validation.html_report import bars, charts, words
from validation.html_report.page import html_page

BOUNDS = {"min": "at least", "max": "at most"}
STAGES = [name for name, _, _ in bars.STAGES]


def text(element: Element) -> str:
    return " ".join(element.text.split())


def cells(row: Element) -> list[str]:
    return [text(each) for each in row.children if each.tag in ("th", "td")]


def table(top: Element, caption: str) -> list[list[str]]:
    """The cells of the body's rows of the one table whose caption begins so."""
    (found,) = [each for each in top.all("table") if text(next(each.all("caption"))).startswith(caption)]
    return [cells(row) for row in next(found.all("tbody")).all("tr")]


def section(top: Element, name: str) -> Element:
    return next(each for each in top.all("section") if each.attributes["id"] == name)


@pytest.fixture
def top(whole: dict[str, Any]) -> Element:
    return parsed(html_page(whole))


def test_limits(failed: dict[str, Any]) -> None:
    rows = [cells(row) for row in section(parsed(html_page(failed)), "limits").all("tr")]
    shown = [row[1] for row in rows if row[0] != "Quantity"]
    expected = [
        f"{words.number(row['value'])} {BOUNDS[row['bound']]} {words.number(row['limit'])} "
        f"{'✓ holds' if row['passed'] else '✗ missed'}"
        for row in failed["limits"]
    ]
    assert shown == expected
    assert {"at least", "at most"} <= {" ".join(each.split()[1:3]) for each in shown if "no number" not in each}


def test_the_verdict_names_what_is_missed_and_what_is_lacking(failed: dict[str, Any]) -> None:
    said = text(
        next(each for each in parsed(html_page(failed)).all("div") if "verdict" in each.attributes.get("class", ""))
    )
    row = failed["limits"][9]
    assert f"{row['quantity']}.{row['metric']} is no number" in said
    assert "not measured, though it should have been: answer.rank" in said


def test_blocks(whole: dict[str, Any], top: Element) -> None:
    for run in whole["blocks"]:
        found = [
            each
            for each in section(top, "blocks").all("div")
            if each.attributes.get("aria-label", "").endswith(f"blocks, {run['function']}")
        ]
        rows = [cells(row)[1:] for row in next(found[0].all("tbody")).all("tr")]
        assert rows == [
            [words.decibel(row["snr_db"]), words.decibel(row["rounded_snr_db"]), words.loss(row["loss_db"])]
            for row in run["blocks"]
        ]


def test_steps(failed: dict[str, Any]) -> None:
    tables = [each for each in parsed(html_page(failed)).all("table") if each.attributes.get("class") == "steps"]
    assert len(tables) == len(failed["questions"])
    for found, question in zip(tables, failed["questions"], strict=True):
        heads = cells(next(next(found.all("thead")).all("tr")))
        assert heads == ["Step", "PyTorch", "Core ML", "Margin", "Error", "KL"]
        rows = [cells(row) for row in next(found.all("tbody")).all("tr")]
        for place, (row, step) in enumerate(zip(rows, question["transcript"]["steps"], strict=True), 1):
            assert row[:2] == [str(place), words.token(step["pytorch"]["text"], blanks=True)]
            assert row[3:] == [words.number(step[name]) for name in ("margin", "logit_error", "kl")]
            if step["pytorch"]["id"] == step["coreml"]["id"]:
                assert row[2] == "same"
            else:
                assert (
                    row[2]
                    == f"{words.token(step['coreml']['text'], blanks=True)} ({'tie' if step['tie'] else 'differs'})"
                )


def test_answers_stand_beside_their_side(document: dict[str, Any]) -> None:
    document["questions"][0]["answers"] = {
        "coreml": {"text": "of the package", "right": False}, "pytorch": {"text": "of the reference", "right": True},
        "same": False,
    }  # fmt: skip
    document["questions"][0]["expected"] = "of the world"
    said = next(each for each in parsed(html_page(document)).all("dl") if each.attributes.get("class") == "said")
    assert [text(each) for each in said.children] == [
        "Core ML", "of the package ✗ not the true answer", "PyTorch", "of the reference ✓ right",
        "True answer", "of the world",
    ]  # fmt: skip


def test_the_score(document: dict[str, Any]) -> None:
    document["score"] = {
        "count": 9, "in_full": 4, "agree": 8, "answered": 7, "build_right": 5, "reference_right": 6,
    }  # fmt: skip
    top = parsed(html_page(document))
    tiles = [text(each) for each in next(top.all("dl")).all("div")]
    assert tiles[0] == "answers are the same as PyTorch's 8 of 9"
    assert "agree on 8 of 9. Of 7 with a known answer the build has 5 right, PyTorch 6. The first 4 are" in text(top)


def test_largest_values(failed: dict[str, Any]) -> None:
    failed["ranges"]["largest"][1]["peak"] = 40_000
    top = parsed(html_page(failed))
    for run in failed["ranges"]["runs"]:
        found = next(
            each
            for each in top.all("div")
            if each.attributes.get("aria-label") == f"Table of largest values, {run['function']}"
        )
        assert [cells(row)[2].removesuffix(" beyond the limit") for row in next(found.all("tbody")).all("tr")] == [
            words.number(row["peak"]) for row in run["blocks"]
        ]
    rows = table(top, "Of all functions.")
    beyond = [" beyond the limit", " beyond the limit", *[""] * (len(rows) - 2)]
    assert [row[2] for row in rows] == [
        f"{words.number(row['peak'])}{more}" for row, more in zip(failed["ranges"]["largest"], beyond, strict=True)
    ]


def test_times_and_sizes(whole: dict[str, Any], top: Element) -> None:
    (contender,) = whole["times"]["contenders"]
    shown = [row[1] for row in table(top, "mil: ")]
    assert shown == [words.seconds(row["median"]) for row in contender["stages"] if row["stage"] in STAGES]
    token = next(row["median"] for row in contender["stages"] if row["stage"] == "decode")
    assert f", then {words.number(1 / token)} tokens a second." in text(section(top, "times"))
    rows = {row[0].replace(". ", "."): row[1] for row in table(top, "What the bytes are")}
    sizes = whole["sizes"]
    packages = {row["package"]: row["bytes"] for row in sizes["packages"]}
    for name, count in packages.items():
        (shown_as,) = [value for key, value in rows.items() if key.startswith(f"{name} weights ")]
        assert shown_as == words.size(count)
    (embeddings,) = [row["bytes"] for row in sizes["files"] if row["file"] == "embeddings.bin"]
    rest = sizes["total_bytes"] - sum(packages.values()) - embeddings
    assert rows["everything else tokenizer, prompts"] == words.size(rest)


def test_bars_are_drawn_where_they_begin(whole: dict[str, Any], top: Element) -> None:
    def drawn(part: Element) -> Iterator[tuple[float, float]]:
        for bar in part.all("rect"):
            if bar.attributes["class"] != "track":
                yield float(bar.attributes["x"][:-1]), float(bar.attributes["width"][:-1])

    (fall,) = bars.waterfalls(whole["times"])
    assert [*drawn(section(top, "times"))] == [(row["start"], row["share"]) for row in fall["rows"]]
    starts = [start for start, _ in drawn(section(top, "times"))]
    assert starts == sorted(starts)
    assert starts[-1] > 0
    assert [*drawn(section(top, "sizes"))] == [
        (row["start"], row["share"]) for row in bars.sizes(whole["sizes"])["rows"]
    ]


def test_plots_are_drawn_where_their_scale_puts_them(whole: dict[str, Any], top: Element) -> None:
    run = whole["blocks"][0]
    drawing = next(each for each in section(top, "blocks").all("svg") if each.attributes.get("class") == "drawing")
    chart = charts.block_chart(run)
    circles = [(each.attributes["cx"], float(each.attributes["cy"])) for each in drawing.all("circle")]
    assert circles == [(f"{point.x}%", point.y) for point in chart.series[2].points]
    best = max(range(len(circles)), key=lambda place: run["blocks"][place]["snr_db"])
    assert circles[best][1] == min(y for _, y in circles), "better is higher"
    ranges = charts.range_chart(whole["ranges"]["runs"][0], whole["ranges"])
    drawing = next(each for each in section(top, "ranges").all("svg") if each.attributes.get("class") == "drawing")
    rules = [float(each.attributes["y1"]) for each in drawing.all("line") if "rule" in each.attributes["class"]]
    assert rules == [rule.y for rule in ranges.rules]
    assert rules[0] < rules[1] < ranges.floor, "fp16's end above the limit, both above the floor"


def test_both_transcripts_differing_steps_are_listed(failed: dict[str, Any]) -> None:
    step = {**failed["differing_steps"][0], "of": "language", "sample": "alone.png: ?", "step": 7}
    failed["differing_steps"].append(step)
    rows = table(parsed(html_page(failed)), "Probabilities are of")
    assert len(rows) == len(failed["differing_steps"])
    assert rows[-1][0] == "step 7 decoder alone, alone. png: ?"
    assert [row[-1] for row in rows] == ["≈ tie", "✗ divergence", "≈ tie"]
    assert rows[0][1].endswith("40 % against 30 %")


def test_what_is_not_stated_is_not_written(document: dict[str, Any]) -> None:
    document["build"] |= {"query_length": None, "revision": None, "layout": None}
    page = parsed(html_page(document))
    for script in page.all("script"):
        script.parts.clear()
    assert "None" not in text(page)
