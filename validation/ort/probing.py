"""A first load of an ONNX file in a process of its own: onnxruntime may end the process that gives it a file.

Decision: probe, for two reasons. `opening` refuses what this project never writes, but shapes follow from shapes inside
of onnxruntime, and its checks there are assertions: a convolution whose kernel is larger than its padded picture ends
the process in a C++ library's own check (1.32, `std::clamp`), while the graph is simplified. And it costs little: a
start of Python and onnxruntime (0.25 s), once for all files of an engine, beside the seconds of the first answer;
weights are mapped, not read. A file that has passed is not probed again by this process.

What remains: kernels run in this process. What mutated files showed to end one (numbers that are cut to 32 bits) is
refused by `opening`; tests/hostile/test_hostile_onnx.py goes on looking.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastvlm.errors import ExecutionError, FastVLMError, ProcessError
from validation.children import Child, Limits, Tell
from validation.ort.opening import OnnxFile
from validation.ort.providers import CPU
from validation.ort.settings import Settings

SERVES = "validation.ort.probing:Loader"
LIMITS = Limits(seconds=600.0)  # 7B in float32 takes a minute from a slow disk
_passed: set[tuple[Any, ...]] = set()


class Loader:
    """Loads files and drops them again; lives in a child."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def load(self, path: str, inside: int | None, settings: dict[str, Any]) -> None:
        """Reads, checks and loads one file for the CPU; raises what `validation.ort.loading.load` raises."""
        from validation.ort.loading import load_here
        from validation.ort.opening import open_file

        file = open_file(Path(path), inside)
        self._tell(f"loading {file.path.name}")
        load_here(file, (CPU,), Settings(**settings))


class Prober:
    """Loads files in a child, which it starts when there is something to load and again where one has died."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def check(self, file: OnnxFile, settings: Settings) -> None:
        """Raises ExecutionError for a file whose load ends its process, or takes longer than LIMITS.

        What the load itself raises is not told: it is raised again where the file is loaded, for providers of choice.
        """
        key = _identity(file.path)
        if key in _passed:
            return
        if self._child is None:
            self._child = Child(SERVES, "onnxruntime", LIMITS)
        told = asdict(settings) | {"pack": False}
        try:
            self._child.call("load", path=str(file.path), inside=file.inside, settings=told)
        except ProcessError as error:
            self.close()
            raise ExecutionError(
                f"{file.path} ends the process that loads it in onnxruntime ({error}); export the build again"
            ) from error
        except FastVLMError:
            return
        _passed.add(key)

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _identity(path: Path) -> tuple[Any, ...]:
    status = os.stat(path)
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns
