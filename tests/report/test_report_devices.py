"""The device table: what `fit` says of the build's own files, in words, beside what an app gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from markup import parsed

from fastvlm.build import read_build
from validation.html_report.bars import devices
from validation.html_report.devices import device_rows
from validation.html_report.page import html_page
from validation.html_report.schema import check

ROW = {
    "devices": ["iPhone 15 Pro", "iPhone 15 Pro Max"], "kind": "phone", "chip": "A17 Pro", "memory_gb": [8],
    "image_size": 1024, "fits": "yes", "leaves_room": True, "fits_app": True, "need_bytes": 1_500_000_000,
    "limit_bytes": 3_000_000_000, "increased_bytes": 6_000_000_000, "basis": "measured on it", "first_token": 0.29,
    "tokens_per_second": 44.7, "assumed": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word", "badge", "share"),
    [
        ({}, "fits", "good", 25.0),
        ({"fits": "with increased-memory-limit"}, "fits with increased-memory-limit", "tie", 25.0),
        ({"fits": "no", "need_bytes": 9_000_000_000}, "does not fit", "bad", 100.0),
        ({"leaves_room": False}, "barely, the app itself has no room", "bad", 25.0),
        ({"fits_app": False}, "fits, as a download: too large for an app", "tie", 25.0),
        ({"fits": "unknown", "limit_bytes": None, "increased_bytes": None}, "its limit is unknown", "tie", None),
    ],
)
def test_a_row_in_words(
    document: dict[str, Any], changes: dict[str, Any], word: str, badge: str, share: float | None
) -> None:
    document["devices"] = {"note": "within 8 %", "rows": [ROW | changes]}
    ((head, (row,)),) = devices(check(document, "it")["devices"])
    assert (head, row["word"], row["badge"], row["share"]) == ("Phones", word, badge, share)
    text = " ".join(parsed(html_page(check(document, "it"))).text.split())
    assert f"iPhone 15 Pro, iPhone 15 Pro Max A17 Pro, 8 GB; needs {'9' if share == 100 else '1.5'} GB" in text
    assert word in text
    assert "within 8 %" in text
    assert "290 ms then 44.7/s" in text


def test_without_an_estimate_the_page_says_so(document: dict[str, Any]) -> None:
    for found, words in ((None, "without fit"), ({"note": "half a build", "rows": []}, "Not estimated: half a build")):
        text = " ".join(parsed(html_page({**document, "devices": found})).text.split())
        assert words in text


def test_of_half_a_build_nothing_is_estimated(exported_app: Path) -> None:
    found = device_rows(read_build(exported_app))
    assert found is not None
    assert found["rows"] == []


def test_a_build_is_estimated_for_every_device_of_the_table(whole: dict[str, Any]) -> None:
    from fastvlm.devices import DEVICES

    named = [name for row in whole["devices"]["rows"] for name in row["devices"]]
    assert sorted(named) == sorted(device.name for device in DEVICES)
    assert all(row["first_token"] > 0 and row["need_bytes"] > 10**6 for row in whole["devices"]["rows"])


def test_a_row_is_what_fit_says_in_three_digits(whole: dict[str, Any], reported: Path) -> None:
    from validation.fit import estimate, sizes_of

    for row in whole["devices"]["rows"][::5]:
        found = estimate(sizes_of(reported.parent / "build"), row["devices"][0])
        for name in ("first_token", "tokens_per_second"):
            assert row[name] == float(f"{getattr(found, name):.3g}")
        memory = found.memory
        assert (row["need_bytes"], row["limit_bytes"], row["increased_bytes"]) == (
            memory.weights + memory.state + memory.maps, memory.limit, memory.increased,
        )  # fmt: skip
        assert (row["fits"], row["basis"], row["assumed"]) == (memory.verdict, memory.basis, list(found.assumed))


def test_what_was_assumed_is_on_the_page_once(document: dict[str, Any]) -> None:
    rows = [ROW | {"assumed": ["34 GB/s stand in", "half of 35 TOPS"]}, ROW | {"assumed": ["half of 35 TOPS"]}]
    document["devices"] = {"note": "checked", "rows": rows}
    top = parsed(html_page(check(document, "it")))
    assert "Such estimates were checked." in " ".join(top.text.split())
    assert [each.text for each in top.all("li") if each.text in rows[0]["assumed"]] == rows[0]["assumed"]


@pytest.mark.parametrize(
    ("needs", "words"),
    [((1_420_000_000,), "1.42 GB (weights"), ((920_000_000, 1_420_000_000), "920 MB to 1.42 GB, by device (weights")],
)
def test_memory_stands_beside_size(document: dict[str, Any], needs: tuple[int, ...], words: str) -> None:
    document["devices"] = {"note": "checked", "rows": [ROW | {"need_bytes": need} for need in needs]}
    text = " ".join(parsed(html_page(check(document, "it"))).text.split())
    assert f"Held while it answers, estimated: {words}" in text


def test_memory_sizes_are_told_as_people_say_them(document: dict[str, Any]) -> None:
    document["devices"] = {"note": "checked", "rows": [ROW | {"memory_gb": [36, 48, 64]}]}
    assert "36, 48 or 64 GB" in " ".join(parsed(html_page(check(document, "it"))).text.split())
