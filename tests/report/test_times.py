"""Times: medians of the validation's own calls, or a profile's of the very build; bars stand one behind the other."""

from __future__ import annotations

from typing import Any

import pytest
from markup import parsed

from fastvlm.errors import UsageError
from validation.html_report import with_profile
from validation.html_report.bars import sizes, waterfalls
from validation.html_report.page import html_page
from validation.html_report.schema import check
from validation.html_report.times import taken


def profile(sha256: str, **changes: Any) -> dict[str, Any]:
    """What `fastvlm profile --json` prints, of two contenders."""
    seconds = {"load_encoder": 0.5, "preprocess": 0.01, "encode": 0.04, "prefill": 0.03, "first_token": 0.02}
    stages = [
        {"stage": stage, "position": None, "first": 1.0, "runs": {"median": value, "q1": value, "count": 5}}
        for stage, value in seconds.items()
    ]
    stages.append({"stage": "to_first_token", "position": None, "first": None, "runs": {"median": 0.1, "count": 5}})
    stages += [
        {"stage": "decode", "position": position, "first": 1.0, "runs": {"median": value, "count": 4}}
        for position, value in ((300, 0.01), (2000, 0.02))
    ]
    stages.append({"stage": "decode", "position": 9, "first": 1.0, "runs": None})
    own = {
        "name": "tiny on a Mac", "build": {"manifest_sha256": sha256}, "stages": stages,
        "compute_units": "cpuAndNeuralEngine", "memory_bytes": {"before_load": 1, "peak": 10**9},
    }  # fmt: skip
    other = {**own, "name": "another build", "build": {"manifest_sha256": "0" * 64}}
    return {"schema": "0.1", "machine": {"chip": "M4", "cores": 10}, "contenders": [other, own], **changes}


def test_a_profile_takes_the_place_of_the_validations_times(document: dict[str, Any]) -> None:
    found = with_profile(document, profile(document["build"]["manifest_sha256"]), "profile.json")
    assert document["times"]["measured_by"] == "validation"
    assert found["times"]["measured_by"] == "profile"
    assert found["times"]["machine"] == "M4"
    (contender,) = found["times"]["contenders"]
    assert (contender["name"], contender["peak_bytes"]) == ("tiny on a Mac", 10**9)
    (fall,) = waterfalls(found["times"])
    assert fall["total"] == pytest.approx(0.1)
    assert fall["speed"] == pytest.approx(100), "at the shortest context"
    assert [row["name"] for row in fall["others"]] == ["load encoder", "decode at position 2000"]
    text = " ".join(parsed(html_page(found)).text.split())
    assert "100 ms to the first token, then 100 tokens a second" in text
    assert "Peak memory of the process: 1 GB" in text
    assert contender["compute_units"] == "cpuAndNeuralEngine"
    assert "Where Core ML was allowed to run: cpuAndNeuralEngine." in text
    assert "to the first token, tiny on a Mac 100 ms" in text, "among the facts at the top"
    assert "No benchmark" not in text


@pytest.mark.parametrize(
    ("stages", "caption"),
    [
        (("encode", "prefill", "first_token", "decode"), "it: 3 s to the first token, then 1 tokens a second. "),
        (("encode", "prefill", "first_token"), "it: 3 s to the first token. "),
        (("prefill", "first_token"), "it: 2 s to the first token, of a picture that is encoded already. "),
        (("preprocess", "encode"), "it: 2 s in all, without a first token. "),
        (("decode",), "it: 1 tokens a second. "),
        (("load_encoder",), "it: no stage of an answer was timed. "),
        ((), "it: no stage of an answer was timed. "),
    ],
)
def test_the_sum_is_called_what_it_is(document: dict[str, Any], stages: tuple[str, ...], caption: str) -> None:
    """Of an encoder alone nothing leads to a token."""
    rows = [{"stage": stage, "position": None, "median": 1.0, "count": 1} for stage in stages]
    contender = {"name": "it", "compute_units": None, "peak_bytes": None, "stages": rows}
    document["times"] = {"measured_by": "profile", "machine": None, "contenders": [contender]}
    text = " ".join(parsed(html_page(check(document, "it"))).text.split())
    assert caption in text
    tile = "first_token" in stages or "encode" in stages
    assert (", it" in text.partition("Answers")[0]) == tile, "and so in the tiles"


@pytest.mark.parametrize(("load", "told"), [(7.42, True), (0.5, False), (None, False), ("high", False)])
def test_a_busy_machine_is_told(document: dict[str, Any], load: Any, told: bool) -> None:
    measured = profile(document["build"]["manifest_sha256"], load_average=load)
    text = " ".join(parsed(html_page(with_profile(document, measured, "profile.json"))).text.split())
    assert ("That machine was busy (load 7.42): on an idle one these are shorter." in text) == told
    assert ("tiny on a Mac, on a busy machine" in text) == told
    assert "it is no phone" in text


def test_a_profile_of_nobody_is_a_page(document: dict[str, Any]) -> None:
    document["times"] = {"measured_by": "profile", "machine": None, "contenders": []}
    html_page(check(document, "it"))


def test_bars_begin_where_the_one_before_ends(document: dict[str, Any]) -> None:
    (fall,) = waterfalls(document["times"])
    assert [row["name"] for row in fall["rows"]] == ["Encoder", "Prefill", "First token", "Each further token"]
    end = 0.0
    for row in fall["rows"]:
        assert row["start"] == pytest.approx(end, abs=0.05)
        end = row["start"] + row["share"]
    assert end == pytest.approx(100, abs=1)
    parts = sizes(document["sizes"])
    assert sum(row["bytes"] for row in parts["rows"]) == document["sizes"]["total_bytes"]
    assert parts["rows"][0]["start"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contenders": None}, "is no profile; make one with"),
        ({"contenders": []}, "is of no build at all"),
        ({"contenders": [{"build": {"manifest_sha256": "f" * 64}}]}, "is of ffffffffffff, and this report is of"),
        ({"contenders": ["what", {"build": 1}]}, "is of None"),
    ],
)
def test_a_profile_of_something_else_is_refused(document: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        with_profile(document, profile("0" * 64, **changes), "p.json")
    with pytest.raises(UsageError, match="is no profile"):
        with_profile(document, [1], "p.json")


@pytest.mark.parametrize("stages", [None, [1], [{"stage": "encode", "runs": {"median": "x", "count": 1}}]])
def test_stages_that_are_none_are_left_out(document: dict[str, Any], stages: Any) -> None:
    own = {"build": {"manifest_sha256": document["build"]["manifest_sha256"]}, "stages": stages, "memory_bytes": 7}
    found = with_profile(document, {"contenders": [own]}, "p.json")
    assert found["times"]["contenders"] == [{"name": "None", "compute_units": None, "stages": [], "peak_bytes": None}]
    html_page(found)


def test_the_median_of_a_validations_calls() -> None:
    found = taken({"encode": [9.0, 1.0, 2.0], "prefill": [], "decode": [0.5]}, "mil")
    assert found is not None
    assert [(row["stage"], row["median"], row["count"]) for row in found["contenders"][0]["stages"]] == [
        ("encode", 2.0, 3), ("decode", 0.5, 1),
    ]  # fmt: skip
    assert taken({"encode": []}, "mil") is None
