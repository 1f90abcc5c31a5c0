"""How fast a build is, and where the time goes: stage by stage, each contender in a process of its own.

`profile(builds)` measures; `Profile.as_json()` is what `--json` prints (docs/profiling.md). What a run does says
`bench`, in which order contenders run says `rounds`, what is told of many runs says `spread`.
"""

from __future__ import annotations

from typing import Any

_HOMES = {"profile": "validation.profiling.measuring", "Profile": "validation.profiling.result"}


def __getattr__(name: str) -> Any:
    """Loads public names when they are used: a child process needs neither."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'validation.profiling' has no attribute {name!r}")
