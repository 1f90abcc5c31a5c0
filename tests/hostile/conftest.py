"""What all hostile suites share."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import pytest

from fastvlm_ref.threads import one_thread


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
