"""Would the Neural Engine take what is in a package? Rules with sources over the file that ships, off a device.

`lint(path, device)` reads a package or a whole build and reports op by op what would leave the engine and which rule
says so, what only costs, what is at risk, and which share of the work stays. It is no measurement: no rule here was
tried on a device by this project, and each says how sure it is (docs/ane.md).
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Loads `lint` when it is used: a page of rules needs no report."""
    if name == "lint":
        from validation.lint.checking import lint

        return lint
    raise AttributeError(f"module 'validation.lint' has no attribute {name!r}")
