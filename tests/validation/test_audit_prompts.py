"""The audit of ready-made prompts: a planted id is found and named; builds from before there were any pass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_builds import audited, red, tiny

from fastvlm.build import read_build
from fastvlm.errors import BuildError
from fastvlm.manifest import dump, find_changes
from validation.audit.findings import Findings
from validation.audit.prompts import hold_prompts
from validation.pair import Pair

CONSTANTS = "audit.differing_constants"
Edit = Callable[[dict[str, Any]], None]


def edited(build: Path, name: str, edit: Edit) -> Pair:
    """The build with one JSON file changed, beside its checkpoint."""
    content = json.loads((build / name).read_bytes())
    edit(content)
    (build / name).write_bytes(dump(content))
    return Pair(read_build(build), tiny())


def found(pair: Pair) -> list[str]:
    """Every sentence that the audit of the prompts alone has to say."""
    findings = Findings()
    hold_prompts(pair, findings)
    return list(findings.counts.get(CONSTANTS, {}))


def test_a_good_build_s_are_looked_at_and_right(exported_tiny: Path) -> None:
    findings = Findings()
    hold_prompts(Pair(read_build(exported_tiny), tiny()), findings)
    assert findings.counts == {}
    assert findings.looked_at[CONSTANTS] == 1 + 2 * 8


def other_id(content: dict[str, Any]) -> None:
    content["prompts"][3]["ids_after_image"][2] += 1


def other_id_before(content: dict[str, Any]) -> None:
    content["prompts"][0]["ids_before_image"][0] = 0


def id_lost(content: dict[str, Any]) -> None:
    content["prompts"][1]["ids_after_image"].pop()


def id_more(content: dict[str, Any]) -> None:
    content["prompts"][1]["ids_before_image"].append(7)


def other_text(content: dict[str, Any]) -> None:
    content["prompts"][2]["text"] = "What colour is the circle?"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (other_id, r"^prompts\.json: 'What is red': ids_after_image\[2\] is (\d+), expected (\d+)$"),
        (other_id_before, r"^prompts\.json: 'Describe': ids_before_image\[0\] is 0, expected \d+$"),
        (id_lost, r"^prompts\.json: 'Count': ids_after_image has \d+ ids, expected \d+$"),
        (id_more, r"^prompts\.json: 'Count': ids_before_image has \d+ ids, expected \d+$"),
        (other_text, r"^prompts\.json: 'Colour of the square': ids_after_image\[\d+\] is \d+, expected \d+$"),
    ],
)
def test_a_planted_fault_is_found_and_named(tiny_build: Path, edit: Edit, says: str) -> None:
    pair = edited(tiny_build, "prompts.json", edit)
    (sentence,) = found(pair)
    assert re.search(says, sentence), sentence


def test_it_is_a_row_of_the_audit(tiny_build: Path) -> None:
    ((key, subject),) = red(edited(tiny_build, "prompts.json", other_id)).items()
    assert key == CONSTANTS
    assert subject.startswith("prompts.json: 'What is red': ids_after_image[2] is ")


def test_texts_are_the_checkpoint_s_own_affair(tiny_build: Path) -> None:
    """Fewer, in another order, under other titles: no wrong question comes of it."""

    def shuffle(content: dict[str, Any]) -> None:
        content["prompts"] = content["prompts"][:3:-1]
        content["prompts"][0]["title"] = "Another"

    assert found(edited(tiny_build, "prompts.json", shuffle)) == []


@pytest.mark.parametrize("only", [None, "encoder", "language"])
def test_none_at_all_is_found(tiny_build: Path, only: str | None) -> None:
    def part(content: dict[str, Any]) -> None:
        content["packages"] = {key: value for key, value in content["packages"].items() if only in (None, key)}
        content["image"]["sizes"] = [] if only == "language" else [256]

    edited(tiny_build, "manifest.json", part)
    pair = edited(tiny_build, "prompts.json", lambda content: content.update(prompts=[]))
    assert found(pair) == ["prompts.json holds no prompt, expected one at least: 'Describe' fits"]


def test_none_is_right_where_none_fits(tiny_build: Path) -> None:
    edited(tiny_build, "manifest.json", lambda content: content.update(context=32))
    assert found(edited(tiny_build, "prompts.json", lambda content: content.update(prompts=[]))) == []


def test_a_build_of_an_older_schema_is_not_blamed(tiny_build: Path) -> None:
    """As 0.2 left one: no file, no entry, and the validation's other rows as ever."""

    def older(content: dict[str, Any]) -> None:
        content["schema"] = "0.2"
        del content["prompts"], content["files"]["prompts.json"]

    (tiny_build / "prompts.json").unlink()
    pair = edited(tiny_build, "manifest.json", older)
    assert pair.build.prompts is None
    assert find_changes(tiny_build, pair.build.manifest) == []
    assert all(row.passed for row in audited(pair).values())


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (None, "manifest.json: prompts is None, expected {'file': 'prompts.json'}"),
        ({"file": "copy.json"}, "manifest.json: prompts.file is copy.json, expected prompts.json"),
    ],
)
def test_a_manifest_that_names_another_file_is_found(tiny_build: Path, told: Any, says: str) -> None:
    (tiny_build / "copy.json").write_bytes((tiny_build / "prompts.json").read_bytes())
    assert found(edited(tiny_build, "manifest.json", lambda content: content.update(prompts=told))) == [says]


def test_a_file_that_holds_no_prompts_is_an_error(tiny_build: Path) -> None:
    (tiny_build / "prompts.json").write_text('{"prompts": [{}]}')
    with pytest.raises(BuildError, match=r"prompts\.json: entry 1: title is null"):
        found(Pair(read_build(tiny_build), tiny()))


@pytest.mark.parametrize("told", [5, {}, {"file": "../x"}, {"file": 3}])
def test_an_entry_that_names_no_file_is_an_error(tiny_build: Path, told: Any) -> None:
    with pytest.raises(BuildError, match=r"prompts|names the path '\.\./x'"):
        edited(tiny_build, "manifest.json", lambda content: content.update(prompts=told))
