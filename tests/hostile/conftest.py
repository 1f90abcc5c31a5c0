"""What all hostile suites share."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_once import made_once
from ordeal import LONG
from real_exports import MOST, Count, one_at_a_time

from fastvlm_ref.threads import one_thread

COUNT = pytest.StashKey[Count]()


@pytest.fixture(scope="session")
def real_exports(run_folder: Path, pytestconfig: pytest.Config) -> Count:
    """The count of this run's real exports, of all its processes."""
    short = not LONG and "not long" in pytestconfig.getoption("markexpr")
    pytestconfig.stash[COUNT] = Count(run_folder / "real exports", MOST if short else None)
    return pytestconfig.stash[COUNT]


@pytest.fixture(scope="module", autouse=True)
def _exports_are_counted(real_exports: Count) -> Iterator[None]:
    """Every export of a suite begins here, in forked children too."""
    from export import api

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "export_model", real_exports.around(api.export_model))
        yield


@pytest.fixture(scope="session")
def onnx_tiny(run_folder: Path, real_exports: Count) -> Path:
    """The embedded checkpoint as ONNX files, exported once for all suites; never written to."""
    from export import api

    def make(place: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "export_model", real_exports.around(api.export_model))
            api.export("tiny", place, format="onnx")

    with one_at_a_time(run_folder / "onnx lock"):
        return made_once(run_folder / "hostile" / "onnx", make)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says how many there were; a run of several processes has the file alone."""
    if (count := config.stash.get(COUNT, None)) is not None:
        most = "" if count.most is None else f", at most {count.most} have room"
        terminalreporter.write_line(f"real exports of the hostile suites: {int(count)}{most}")


@pytest.fixture(scope="module", autouse=True)
def one_thread_before_a_fork() -> Iterator[None]:
    """A child has none of the threads that torch started before the fork, and would wait for them for ever."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _coremltools_itself(_conversions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of an earlier conversion fails in other ways than coremltools does."""
    convert = sys.modules.get("export.convert")
    if convert is not None:
        monkeypatch.setattr(convert, "convert", inspect.unwrap(convert.convert))
