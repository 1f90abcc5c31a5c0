"""The time that is told beforehand: grows with what it should, is told where it matters, and is never far off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastvlm.build import Build, read_build
from validation import expected_time
from validation.expected_time import Seconds, expected_seconds, in_words, seconds_of, tell

# What one call takes on the build of 0.5B at 1024, context 2,048, from its operations: 490, 55 and 1.17 GFLOP.
HALF = Seconds(encode=490e9 / 75e9, prefill=55e9 / 60e9, decode=1.17e9 / 9e9)


@pytest.fixture
def build(exported_tiny: Path) -> Build:
    return read_build(exported_tiny)


@pytest.fixture
def half(build: Build, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A build with the calls of 0.5B and a checkpoint of 1.5 GB."""
    monkeypatch.setattr(expected_time, "seconds_of", lambda build: HALF)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return replace(build, image_sizes=(1024,), source_files={"model.safetensors": {"bytes": 1_500_000_000}})


def test_a_call_is_reckoned_from_its_operations(build: Build) -> None:
    found = seconds_of(build)
    assert found.encode == pytest.approx(0.1889e9 / 75e9, rel=0.01)
    assert found.prefill == pytest.approx(0.4721e9 / 60e9, rel=0.01)
    assert found.decode == pytest.approx(0.00999e9 / 9e9, rel=0.01)


def test_more_work_takes_longer(half: Build) -> None:
    def seconds(in_full: int = 3, alone: int = 0, steps: int = 64, build: Build = half) -> float:
        return expected_seconds(build, in_full, alone, steps)

    assert seconds(in_full=4) > seconds() + 20
    assert seconds(alone=10) > seconds() + 100
    assert seconds(steps=32) < seconds(steps=256)
    assert seconds(build=replace(half, image_sizes=(2048,))) > seconds()


def test_one_core_does_both_sides_one_after_the_other(half: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    two = expected_seconds(half, 3, 0, 64)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert expected_seconds(half, 3, 0, 64) > 1.3 * two


def test_minutes_are_told_and_seconds_are_not(half: Build, build: Build, heard: Any) -> None:
    tell(half, 4, 0, 64, heard)
    (note,) = heard.notes
    assert note.startswith("this takes about 3 minutes, roughly")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expected_time, "seconds_of", lambda build: Seconds(0.003, 0.008, 0.001))
        tell(build, 3, 0, 64, heard)
    assert len(heard.notes) == 1


def test_a_manifest_without_sizes_of_files_is_no_matter(half: Build) -> None:
    damaged = replace(half, source_files={"a": {"bytes": "many"}, "b": 3}, image_sizes=())
    assert expected_seconds(damaged, 1, 0, 1) > 0


def test_in_words() -> None:
    assert [in_words(seconds) for seconds in (61, 89, 100, 7100, 7300)] == [
        "a minute", "a minute", "2 minutes", "118 minutes", "2 hours",
    ]  # fmt: skip
