"""A contender that also tells which libraries its process has loaded."""

from __future__ import annotations

import sys

from validation.profiling.bench import PackageBench


class Librarian(PackageBench):
    """As `PackageBench`."""

    def modules(self) -> list[str]:
        """What this process has loaded."""
        return sorted(sys.modules)
