"""From the reference model to Core ML: graphs, packages, and the build folder.

`export.export` is loaded on first use, because it needs torch and coremltools (about 7 s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.api import export as export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from export.api import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
