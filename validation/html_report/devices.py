"""Which devices a build fits, as `fastvlm fit` estimates it; None where this version has no `fit`."""

from __future__ import annotations

from typing import Any

from fastvlm.build import Build


def device_rows(build: Build) -> dict[str, Any] | None:
    """Placeholder until fit is there."""
    return None
