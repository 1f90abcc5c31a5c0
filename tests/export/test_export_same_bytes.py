"""`fastvlm export tiny` twice, with everything else different: the same bytes. Modes of files follow the umask."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_runs import RUNS, both, new_place, not_in_force

from fastvlm.hashes import hash_tree

WORDS = ("export", "tiny", "-o", "build", "--image-size", "256", "--image-size", "64")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where both runs work."""
    folder = new_place()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def seen(place: Path, root: Path) -> list[dict[str, object]]:
    """What the two runs saw, after both have made their build."""
    return both(place, root, WORDS)


def test_every_condition_was_in_force(seen: list[dict[str, object]], place: Path) -> None:
    assert not_in_force(seen, place) == set()
    assert seen[0]["coremltools"] is True
    assert str(seen[1]["encoding"]).lower() == "utf-8"
    modes = [(place / run.name / "build" / "manifest.json").stat().st_mode & 0o777 for run in RUNS]
    assert modes == [0o644, 0o600], "the umask is the user's"


def test_both_runs_made_the_same_bytes(seen: list[dict[str, object]], place: Path) -> None:
    first, second = (hash_tree(place / run.name / "build") for run in RUNS)
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()
    assert {"manifest.json", "embeddings.bin", "prompts.json", "tokenizer/tokenizer.json"} <= first.keys()


def test_one_other_byte_would_be_found(seen: list[dict[str, object]], place: Path) -> None:
    """And another name, so that the comparison above cannot pass by looking at nothing."""
    first = hash_tree(place / "first" / "build")
    copy = Path(shutil.copytree(place / "first" / "build", place / "copy"))
    with (copy / "VisionEncoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    (copy / "prompts.json").rename(copy / "prompt.json")
    second = hash_tree(copy)
    assert sorted(name.rpartition("/")[2] for name in first | second if first.get(name) != second.get(name)) == [
        "prompt.json", "prompts.json", "weight.bin",
    ]  # fmt: skip
