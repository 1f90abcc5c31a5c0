"""How many real exports the hostile suites make: the short form has room for MOST, and the next one is a failure.

Each one leaves a byte in a file of the run, which processes share that were forked or started for a case; who exports
is named beside the file's count. The build that all tests share (`exported_tiny`) is made by whoever comes first, so it
counts from the beginning. What writes an ONNX graph without an export is none (tests/ort/onnx_builds.py).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

MOST = 8  # of the short forms together
SHARED = 1  # tests/conftest.py's build of `tiny`
MADE_ONCE = "exported"  # the folder of the run that has it


class Count:
    """The exports of a run, in a file that all its processes add to; `most`: None for any number."""

    def __init__(self, file: Path, most: int | None) -> None:
        self.file, self.most = file, most

    def __int__(self) -> int:
        return SHARED + (self.file.stat().st_size if self.file.exists() else 0)

    def one_more(self) -> None:
        """Counts one; AssertionError where that is one too many."""
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, b".")
        finally:
            os.close(handle)
        assert self.most is None or int(self) <= self.most, f"real export {int(self)}, {self.most} have room in all"

    def around(self, export: Callable[..., Any]) -> Callable[..., Any]:
        """The export, counted when it begins; once, however often this is called."""
        if hasattr(export, "counts"):
            return export

        @wraps(export)
        def counted(model: Any, output: str | Path, **named: Any) -> Any:
            if self.file.with_name(MADE_ONCE) not in Path(output).parents:
                self.one_more()
            return export(model, output, **named)

        counted.counts = self  # type: ignore[attr-defined]
        return counted


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Of all processes of a run, one is inside at a time: two would make the same thing, and count it twice."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
