"""The generators of docs/, for the tests that hold a page to what is generated."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parent.parent / "docs"


def generator_of(page: str) -> ModuleType:
    """The generator of that page, which finds beside itself what all generators share."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    return importlib.import_module(f"generate_{page}")
