"""What a stranger's build says of itself, changed at random: each command that reads it takes or refuses it by name."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from mutations import changed_json
from ordeal import Case, in_lines, size, tally, try_all

from fastvlm.cli import cli
from fastvlm.errors import BuildError
from validation.fit import built

ROW = "a build's manifest: fields × commands"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("inspect", "{}"), ("inspect", "{}", "--json"), ("fit", "{}"), ("lint", "{}"),
    ("bundle", "{}", "-o", "{}.bundle", "--unvalidated", "--overwrite"),
)  # fmt: skip
SLOW = ("validate", "{}", "--steps", "1")  # one in SELDOM
SELDOM = 40


def typed(words: Sequence[str]) -> str:
    """What a command prints; BuildError with its error where it ends with 2, AssertionError where it ends otherwise."""
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        try:
            code = cli(list(words))
        except SystemExit as end:
            code = end.code
    errors = [line for line in told.getvalue().splitlines() if line.startswith("Error: ")]
    if code == 2:
        assert len(errors) == 1, told.getvalue()
        raise BuildError(errors[0])
    assert code in (None, 0, 1), f"{code}: {told.getvalue()[-300:]}"
    return said.getvalue()


@pytest.fixture
def build(exported_tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_tiny, tmp_path / "build"))


def with_manifest(build: Path, content: bytes, words: Sequence[str]) -> Callable[[], object]:
    def case() -> str:
        (build / "manifest.json").write_bytes(content)
        return typed([word.format(build) for word in words])

    return case


def fields(build: Path, count: int) -> list[Case]:
    """`count` manifests with one to three entries changed, each read by one command."""
    whole = json.loads((build / "manifest.json").read_text("utf-8"))
    found = []
    for index in range(count):
        words = SLOW if index % SELDOM == SELDOM - 1 else COMMANDS[index % len(COMMANDS)]
        content = changed_json(whole, random.Random(f"{ROW} {index}"))
        found.append((f"{index} {words[0]}", with_manifest(build, content, words)))
    return found


def warmed(build: Path) -> None:
    for words in COMMANDS:
        assert typed([word.format(build) for word in words])


def test_changed_manifests(build: Path) -> None:
    warmed(build)
    outcomes = try_all(fields(build, size(200, 4_000)))
    bad = tally(ROW, outcomes, refused=sum(outcome.kind == "named" for outcome in outcomes))
    assert not bad, in_lines(bad)


FOUND: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a state of letters": (("functions", "language", 0, "state", "shape", 2), "a", "fit"),
    "a state of lists": (("functions", "language", 0, "state", "shape", 2), [], "fit"),
    "a state without a shape": (("functions", "language", 0, "state"), {}, "fit"),
    "a row of a source that is a text": (("source", "files", "README.md"), "0.1", "validate"),
    "a file of 10^400 bytes": (("files", "prompts.json", "bytes"), 10**400, "inspect"),
    "layers that are a list": (("model", "text", "layers"), [], "fit"),
    "no layers": (("model", "text", "layers"), 0, "fit"),
    "10^30 layers": (("model", "text", "layers"), 10**30, "fit"),
    "heads that are true": (("model", "text", "heads"), True, "fit"),
    "a tower without widths": (("model", "vision", "widths"), [], "fit"),
    "an embedding that is not there": (("embeddings", "file"), "a", "fit"),
    "an encoder that is not there": (("packages", "encoder"), "a", "fit"),
}


def found_case(name: str, build: Path) -> Case:
    (*way, last), value, command = FOUND[name]
    manifest = json.loads((build / "manifest.json").read_text("utf-8"))
    owner = manifest
    for key in way:
        owner = owner[key]
    owner[last] = value
    words = SLOW if command == "validate" else (command, "{}")
    return name, with_manifest(build, json.dumps(manifest).encode(), words)


def test_what_was_found_stays_found(build: Path) -> None:
    outcomes = try_all([found_case(name, build) for name in FOUND])
    assert {outcome.kind for outcome in outcomes} == {"named"}, in_lines(outcomes)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        ((f"{built.__name__}._shape", lambda state: state["shape"]), "a state of letters"),
        ((f"{built.__name__}._fits", lambda *_: True), "a tower without widths"),
        (
            ("fastvlm.build._Fields.files", lambda fields, path: fields.mapping(path)),
            "a row of a source that is a text",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_without_its_check_a_field_is_red(
    check: tuple[str, Any], name: str, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*check)
    (outcome,) = try_all([found_case(name, build)])
    assert not outcome.held, outcome
