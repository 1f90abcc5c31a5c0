"""`fastvlm synth` as it is typed: what it says, what it refuses, and that the other commands take what it made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_synthetic import small
from typed import Run

from fastvlm_ref.synthetic.sizes import SIZES


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's sizes, made small: what differs is numbers alone."""
    made = {name: small(name) for name in SIZES}
    for name, size in made.items():
        monkeypatch.setitem(SIZES, name, size)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=0, free=30_000_000))


def test_it_says_where_the_checkpoint_is_and_the_next_command_takes_it(run: Run, tmp_path: Path, picture: Path) -> None:
    place = tmp_path / "made here"
    result = run("synth", "0.5b", "-o", place, "--seed", 3)
    assert (result.exit_code, result.stdout) == (0, f"checkpoint: {place}\n")
    assert result.stderr.splitlines()[-1] == f"next: fastvlm export '{place}' -o BUILD"
    answer = run("run", place, picture, "What?", "--max-new-tokens", 2)
    assert answer.exit_code == 0, answer.stderr
    built = run("export", place, "-o", tmp_path / "build", "--context", 512)
    assert built.exit_code == 0, built.stderr
    manifest = json.loads((tmp_path / "build" / "manifest.json").read_text())
    assert manifest["licence"] == "apache-2.0"
    assert manifest["prompt"]["stop_ids"] == [700, 702]


def test_vicuna_runs_with_its_template(run: Run, tmp_path: Path, picture: Path) -> None:
    assert run("synth", "vicuna-7b", "-o", tmp_path / "made", "--outliers").exit_code == 0
    answer = run("run", tmp_path / "made", picture, "What?", "--max-new-tokens", 2)
    assert answer.exit_code == 0, answer.stderr


def test_it_replaces_its_own_folders_alone(run: Run, tmp_path: Path) -> None:
    words = ("synth", "0.5b", "-o", tmp_path / "made")
    assert run(*words).exit_code == 0
    assert run(*words).exit_code == 2
    first = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert run(*words, "--overwrite", "--seed", 1).exit_code == 0
    assert (tmp_path / "made" / "model.safetensors").read_bytes() != first
    (tmp_path / "made" / "notes.txt").write_text("mine")
    refused = run(*words, "--overwrite")
    assert refused.exit_code == 2
    assert "others put there" in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("8b",), ("'8b'", "vicuna-7b")),
        (("vicuna-7b", "--format", "hf"), ("vicuna-7b", "use llava")),
        (("0.5b", "--seed", "-1"), ("-1",)),
        (("0.5b", "--tokenizer", "absent"), ("absent is no folder", "--tokenizer")),
        (("0.5b", "--tokenizer", ""), ("empty",)),
    ],
)
def test_bad_words_leave_nothing(run: Run, tmp_path: Path, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    check_refused(run, tmp_path, words, says)


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_is_too_small_is_said_first(run: Run, tmp_path: Path) -> None:
    check_refused(run, tmp_path, ("7b",), ("needs 0.04 GB", "0.03 GB are free", "-o"))


def check_refused(run: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    result = run("synth", *words, "-o", tmp_path / "new" / "made")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert [word for word in says if word not in line] == [], line
    assert (result.exit_code, result.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []
