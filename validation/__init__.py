"""Proof that a build computes what its checkpoint computes: executing packages, comparing, judging, reporting."""

from __future__ import annotations

from typing import Any

_HOMES = {"validate": "validation.judging", "open_session": "validation.session", "MILModel": "validation.mil"}


def __getattr__(name: str) -> Any:
    """Loads public names when they are used: torch is not needed to ask for a limit."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'validation' has no attribute {name!r}")
