"""One function of a package in Core ML, loaded in this process: what `predictor` does in another one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from fastvlm.errors import ExecutionError, PackageError
from validation.coreml import here
from validation.coreml.units import NAMES
from validation.mil.package import check_package


class LoadedFunction:
    """`function` of the .mlpackage, loaded for `units` of COMPUTE_UNITS; PackageError where Core ML cannot load it.

    coremltools compiles a package each time that it opens it, which an app does when it is built. `load_seconds` is
    what Core ML itself took to load what was compiled, None where coremltools does not tell.
    """

    def __init__(self, package: Path, function: str, units: str) -> None:
        self._title = f"{function} of {package.name} on {units}"
        check_package(package)
        library = here.library()
        with warnings.catch_warnings(record=True) as told:  # it warns where it cannot load, and fails at the first run
            warnings.simplefilter("always")
            try:
                self._model = library.models.MLModel(
                    str(package), compute_units=library.ComputeUnit[NAMES[units]], function_name=function
                )
            except (OSError, DecodeError, RuntimeError, ValueError) as error:  # no files, damaged, no such function
                raise PackageError(f"coremltools cannot open {self._title}: {error}; export the build again") from error
        if self._model.__proxy__ is None:
            said = " ".join(str(each.message) for each in told) or "it gives no reason"
            raise PackageError(f"Core ML cannot load {self._title}: {said}")
        nanoseconds = self._model.load_duration_in_nano_seconds
        self.load_seconds = None if nanoseconds is None else nanoseconds / 1e9

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """Runs the function once; ExecutionError where Core ML refuses."""
        try:
            # a copy: coremltools puts float32 in the place of fp16 inputs
            outputs: dict[str, Any] = self._model.predict(dict(data), state)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:  # the last three are coremltools' own
            raise ExecutionError(f"Core ML cannot run {self._title}: {error}") from error
        return outputs

    def make_state(self) -> Any:
        """Returns a fresh, zeroed state; ExecutionError where Core ML makes none."""
        try:
            return self._model.make_state()
        except RuntimeError as error:
            raise ExecutionError(f"Core ML makes no state for {self._title}: {error}") from error
