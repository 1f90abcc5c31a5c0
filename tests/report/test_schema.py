"""Every field of the document is checked by its type before a page is made, and described in docs/report.md."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastvlm.errors import ReportError
from validation.html_report.page import html_page
from validation.html_report.schema import FIELDS, Kind, Maybe, check

WRONG = (None, [], {}, -1, 10**400, "inf")


def places(value: Any, kind: Any = FIELDS, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, by the keys that lead there; of a list the first item."""
    if isinstance(kind, Maybe):
        yield from places(value, kind.kind, path)
        return
    if path:
        yield path
    if isinstance(kind, dict) and isinstance(value, dict):
        for key, below in kind.items():
            yield from places(value.get(key), below, (*path, key))
    if isinstance(kind, list) and value:
        yield from places(value[0], kind[0], (*path, 0))


def shortened(value: Any) -> Any:
    """The document with four items at most in each list, to be rendered a hundred times."""
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items()}
    return [shortened(each) for each in value[:4]] if isinstance(value, list) else value


def put(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value


def test_the_document_of_a_validation_has_every_field_and_no_other(whole: dict[str, Any], reported: Path) -> None:
    page = reported.read_text("utf-8")
    stored = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert stored == whole == check(stored, "it")


def test_a_wrong_field_is_named_or_the_page_is_made(failed: dict[str, Any]) -> None:
    """Of every field in turn, every kind of wrong value: an error that names the place, or a page; nothing else."""
    messages, small = [], shortened(failed)
    for picture in small["pictures"]:
        picture["data"] = "AAAA"
    for path in places(small):
        for value in WRONG:
            document = copy.copy(small)
            document[path[0]] = copy.deepcopy(small[path[0]])
            put(document, path, value)
            try:
                html_page(check(document, "report.json"))
            except ReportError as error:
                messages.append(str(error))
    assert len(messages) > 500
    assert all("report.json" in message and len(message) < 2000 for message in messages)


def test_problems_are_listed_with_their_places(document: dict[str, Any]) -> None:
    document["steps"] = "many"
    del document["sizes"]["files"]
    document["questions"][1]["picture"] = 99
    with pytest.raises(
        ReportError, match=r"steps is 'many', expected a whole number; .*sizes.files is nothing, expected"
    ):
        check(document, "it")
    document["steps"], document["sizes"]["files"] = 1, []
    with pytest.raises(ReportError, match=r"questions.1.picture is 99, there are 3 pictures"):
        check(document, "it")


@pytest.mark.parametrize("value", ["inf", "nan", -0.1, 1e10, True, "1"])
def test_times_are_seconds_that_can_be_drawn(document: dict[str, Any], value: Any) -> None:
    for place in (document["times"]["contenders"][0]["stages"][0], document["devices"]["rows"][0]):
        put(place, ("median",) if "median" in place else ("first_token",), value)
    with pytest.raises(ReportError, match=r"first_token is .*, expected seconds, 0 at least; .*\.median is"):
        check(document, "it")


@pytest.mark.parametrize(
    ("value", "good"), [(0, True), (1, True), ("nan", True), (1.01, False), (-0.1, False), ("inf", False)]
)
def test_probabilities_are_from_0_to_1(failed: dict[str, Any], value: Any, good: bool) -> None:
    failed["differing_steps"][0]["coreml"]["probability"]["pytorch"] = value
    if good:
        html_page(check(failed, "it"))
    else:
        with pytest.raises(ReportError, match="expected a probability from 0 to 1"):
            check(failed, "it")


def test_a_picture_has_all_that_shows_it_or_nothing(document: dict[str, Any]) -> None:
    document["pictures"][1] |= {"height": None, "type": None}
    with pytest.raises(ReportError, match=r"pictures\.1 has data and no height, type"):
        check(document, "it")


@pytest.mark.parametrize(
    ("schema", "words"),
    [("1.0", "reads up to 0.2; install a newer"), ("x", "no report"), (None, "no report"), ("0.1" * 9, "no report")],
)
def test_another_schema(document: dict[str, Any], schema: Any, words: str) -> None:
    document["schema"] = schema
    with pytest.raises(ReportError, match=words):
        check(document, "it")


def test_older_and_newer_minor_versions_are_read(document: dict[str, Any]) -> None:
    document |= {"schema": "0.9", "later": {"unknown": 1}}
    del document["times"]
    checked = check(document, "it")
    assert checked["times"] is None
    assert "later" not in checked


def names(kind: Any) -> Iterator[str]:
    if isinstance(kind, Maybe):
        yield from names(kind.kind)
    elif isinstance(kind, list):
        yield from names(kind[0])
    elif isinstance(kind, dict):
        for key, below in kind.items():
            yield key
            yield from names(below)
    else:
        assert isinstance(kind, Kind)


def test_the_page_of_the_schema_names_every_field(root: Path) -> None:
    told = (root / "docs" / "report.md").read_text("utf-8")
    assert [name for name in dict.fromkeys(names(FIELDS)) if not re.search(rf"`(?:\w+\.)?{name}`", told)] == []
