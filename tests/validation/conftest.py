"""Builds that several files compare, made once."""

from __future__ import annotations

import pytest
from audit_builds import Builds


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    """Builds of every kind, each exported when it is first asked for; never written to (`Builds.edited` copies)."""
    return Builds(tmp_path_factory.mktemp("builds"))
