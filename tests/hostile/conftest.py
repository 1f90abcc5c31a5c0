"""What all hostile suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastvlm_ref.threads import one_thread


@pytest.fixture(scope="module", autouse=True)
def one_thread_before_a_fork() -> Iterator[None]:
    """A child has none of the threads that torch started before the fork, and would wait for them for ever."""
    with one_thread():
        yield
