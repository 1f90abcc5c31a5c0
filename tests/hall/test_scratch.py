"""Temporary files lie in the stage while it is worked in, and where they lay before when that is over."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from fastvlm.scratch import COMPILER, temporary_in


def settings() -> tuple[str | None, ...]:
    return os.environ.get("TMPDIR"), os.environ.get(COMPILER), tempfile.tempdir


@pytest.fixture
def stages(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("one", "two")]
    for stage in found:
        stage.mkdir()
    return found


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_everything_temporary_lies_in_the_stage_and_goes_with_it(
    stages: list[Path], monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    for name in ("TMPDIR", COMPILER):
        monkeypatch.setenv(name, before) if before else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", before)
    then = settings()

    def work() -> None:
        with temporary_in(stages[0]) as place:
            assert Path(tempfile.mkdtemp()).parent == place
            assert os.environ["TMPDIR"] == str(place)
            assert os.environ[COMPILER] == (before or str(place / "torchinductor"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert os.listdir(stages[0]) == []
    assert settings() == then


def test_two_at_once_end_in_any_order(stages: list[Path]) -> None:
    """As two threads do: the first to end must not leave the second's folder behind as the process's."""
    then = settings()
    first, second = (temporary_in(stage) for stage in stages)
    first.__enter__()
    place = second.__enter__()
    first.__exit__(None, None, None)
    assert tempfile.gettempdir() == str(place)
    second.__exit__(None, None, None)
    assert settings() == then


def test_what_a_dead_run_left_there_goes_first(stages: list[Path]) -> None:
    (stages[0] / ".tmp" / "left").mkdir(parents=True)
    with temporary_in(stages[0]) as place:
        assert os.listdir(place) == []
