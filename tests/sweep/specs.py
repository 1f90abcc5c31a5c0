"""How the tests of a sweep write a spec, for fixtures and for their annotations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Write = Callable[..., Path]  # lines of a spec -> its file
