"""From the reference model to Core ML: graphs, packages, and the build folder.

`export.export` and `export.scan` are loaded on first use, because they need torch and coremltools (about 7 s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.api import export as export
    from export.ranges.scan import scan as scan

__all__ = ["export", "scan"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from export.api import export

        return export
    if name == "scan":
        from export.ranges.scan import scan

        return scan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
