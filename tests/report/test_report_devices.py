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
