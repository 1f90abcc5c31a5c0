"""The page in a real browser, where there is one: nothing overflows, nothing is asked for, nothing is complained of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chromium import Browser

from validation.html_report import write_report

WIDTHS = (360, 768, 1280)
OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"
# elements that stand out of the page on the right and are not inside something that scrolls by itself
OUTSIDE = """[...document.querySelectorAll('body *')]
 .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5 && !each.closest('.scroll, svg, .hidden, .skip'))
 .map(each => each.tagName + '.' + each.className)"""
LOADED = "[...document.images].every(each => each.complete && each.naturalWidth > 0)"
# tokens that stand out of their list on the left, numbers of tiles that take two lines, columns that crowd the others
LEFT = """[...document.querySelectorAll('.tokens li')]
 .filter(each => each.getBoundingClientRect().left < each.parentElement.getBoundingClientRect().left - 0.5)
 .map(each => each.textContent)"""
LINES = """(each => { const own = document.createRange(); own.selectNodeContents(each.lastChild);
 return new Set([...own.getClientRects()].map(box => Math.round(box.top))).size })"""
BROKEN = f"""[...document.querySelectorAll('.tiles dd, .steps th, .steps td.amount')]
 .filter(each => {LINES}(each) > 1).map(each => each.textContent)"""
CROWDING = """[...document.querySelectorAll('.card table .amount')]
 .filter(each => !each.closest('.scroll') && each.offsetWidth > 0.5 * each.closest('table').offsetWidth)
 .map(each => each.textContent)"""
COLOUR = "getComputedStyle(document.body).backgroundColor"
FONT = "Math.min(...[...document.querySelectorAll('.drawing text')].map(each => each.getBoundingClientRect().height))"


def problems(shown: Browser, page: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What is wrong with a page at a width, everything unfolded; empty where nothing is."""
    shown.show(page, width, dark=dark)
    shown.ask(OPEN)
    found = {
        "wider than the window": shown.ask(f"document.documentElement.scrollWidth > {width}"),
        "outside": shown.ask(OUTSIDE),
        "complaints": shown.complaints(),
        "asked for": [url for url in shown.requests() if not url.startswith("data:image/")],
        "a picture is not shown": not shown.ask(LOADED),
        "tokens that stand out": shown.ask(LEFT),
        "numbers in two lines": shown.ask(BROKEN),
        "columns that crowd": shown.ask(CROWDING),
        "small letters in plots": shown.ask(f"{FONT} < 11"),
    }
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_good_report(shown: Browser, reported: Path, width: int) -> None:
    assert problems(shown, reported, width) == {}
    light = shown.ask(COLOUR)
    assert problems(shown, reported, width, dark=True) == {}
    assert shown.ask(COLOUR) != light, "the system's dark colours"


@pytest.mark.parametrize("width", WIDTHS[:1])
def test_a_failed_report_with_long_words(shown: Browser, failed: dict[str, Any], width: int, tmp_path: Path) -> None:
    long = "LanguageModel" * 12
    failed["build"] |= {"source": long, "licence_text": long, "assumed": [long]}
    failed["limits"][0] |= {"subject": long, "reason": long}
    failed["findings"][0] |= {"op": long, "piece": long}
    failed["sizes"]["files"][0]["file"] = failed["sizes"]["packages"][0]["package"] = long
    for question in failed["questions"]:
        question["prompt"] = question["name"] = question["expected"] = long
        question["answers"]["coreml"]["text"] = question["transcript"]["steps"][0]["coreml"]["text"] = long
    assert problems(shown, write_report(failed, tmp_path / "report.html"), width) == {}


def test_the_checks_see_what_they_look_for(shown: Browser, reported: Path, tmp_path: Path) -> None:
    page = reported.read_text("utf-8")
    wide = page.replace(
        "<footer", '<svg width="700" height="9"></svg><p><img alt="" src="https://example.invalid/x.png"></p><footer'
    )
    (tmp_path / "wide.html").write_text(wide.replace("</footer>", "<script>alert(1)</script></footer>"))
    found = problems(shown, tmp_path / "wide.html", 360)
    assert found["wider than the window"]
    assert len(found["complaints"]) >= 2, "the policy stops the script and the picture"
    assert found["a picture is not shown"]


def test_by_keys_alone(shown: Browser, reported: Path) -> None:
    """The first stop is the link over all navigation, then come the sections; each shows where it is."""
    shown.show(reported, 768)
    stops = []
    for _ in range(4):
        for kind in ("keyDown", "keyUp"):
            shown.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        stops.append(shown.ask("document.activeElement.getAttribute('href')"))
        assert shown.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert stops == ["#answers", "#answers", "#blocks", "#ranges"]


def test_what_a_screen_reader_finds(shown: Browser, reported: Path) -> None:
    shown.show(reported, 768)
    nodes = shown.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = {role for role, _ in named}
    assert {"banner", "navigation", "main", "contentinfo", "article", "table", "columnheader", "rowheader"} <= roles
    drawings = [name for role, name in named if role in ("image", "img")]
    assert any(name.startswith("Signal-to-noise ratio by block, encode_256") for name in drawings)
    assert all(drawings), "a picture without a name"
