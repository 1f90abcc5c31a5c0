"""prompts.json of a build: what is written is read again, and one named error per way in which it can lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastvlm.errors import BuildError
from fastvlm.manifest import is_older
from fastvlm.prompts import MAX_BYTES, EncodedPrompt, dump_prompts, read_prompts

PROMPTS = (EncodedPrompt("Describe", "Describe the image.", (1, 2), (3,)), EncodedPrompt("数", "何個?", (), (0, 7)))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(dump_prompts(PROMPTS))
    assert read_prompts(file) == PROMPTS
    assert [prompt.count for prompt in PROMPTS] == [3, 2]
    content = json.loads(file.read_bytes())
    assert content["schema"] == "0.1"
    assert content["prompts"][0] == {
        "title": "Describe", "text": "Describe the image.", "ids_before_image": [1, 2], "ids_after_image": [3],
    }  # fmt: skip


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    content = json.loads(dump_prompts(PROMPTS))
    content |= {"schema": "0.9", "more": 1}
    content["prompts"][0]["icon"] = "eye"
    (tmp_path / "prompts.json").write_text(json.dumps(content))
    assert read_prompts(tmp_path / "prompts.json") == PROMPTS


ROW = {"title": "a", "text": "b", "ids_before_image": [1], "ids_after_image": []}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (3, "holds no prompts"),
        ([ROW, 5], "entry 2 is 5, expected an object"),
        ([ROW | {"title": None}], "entry 1: title is null, expected text"),
        ([ROW | {"ids_after_image": [1, "2"]}], r'entry 1: ids_after_image is \[1, "2"\], expected a list of token'),
        ([ROW | {"ids_before_image": [-200]}], "expected a list of token ids"),
        ([ROW | {"ids_before_image": [True]}], "expected a list of token ids"),
        ([ROW | {"ids_before_image": [1 << 24]}], "expected a list of token ids"),
        ([{}], "title is null.*text is null.*ids_before_image is null.*ids_after_image is null"),
        ([7] * 30, "entry 10 is 7, expected an object; and 20 more"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, rows: Any, says: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"schema": "0.1", "prompts": rows}))
    with pytest.raises(BuildError, match=says) as caught:
        read_prompts(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00\xff"])
def test_no_prompts_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(text)
    with pytest.raises(BuildError, match="export the build again"):
        read_prompts(file)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    with pytest.raises(BuildError, match="cannot be read"):
        read_prompts(file)
    with file.open("wb") as handle:
        handle.truncate(MAX_BYTES + 1)
    with pytest.raises(BuildError, match=r"has more than 16,777,216 bytes"):
        read_prompts(file)


@pytest.mark.parametrize(
    ("found", "asked", "older"),
    [("0.2", "0.3", True), ("0.3", "0.3", False), ("0.10", "0.3", False), ("1.0", "0.3", False)],
)
def test_schemas_are_compared_as_numbers(found: str, asked: str, older: bool) -> None:
    assert is_older({"schema": found}, asked) is older
