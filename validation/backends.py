"""Who executes a package: the MIL runtime anywhere, or Core ML on a Mac, behind one interface.

A backend opens one function of one package as a `Predictor`, with the surface of coremltools' MLModel. What a
machine lacks is said by name; nothing falls back to another backend.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

from fastvlm.errors import MissingDependency, UsageError

BACKENDS = ("mil", "coreml")


class Predictor(Protocol):
    """One function of a package, ready to run; the surface of coremltools' MLModel that we use."""

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """Runs the function once: named inputs to named outputs; `state` is updated in place."""

    def make_state(self) -> Any:
        """Returns a fresh, zeroed state that every function of the package accepts."""


def check_backend(backend: str) -> None:
    """Raises UsageError for a backend nobody knows, MissingDependency for one that this machine cannot run."""
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if backend == "coreml" and sys.platform != "darwin":
        raise MissingDependency(
            f"backend coreml needs macOS, this machine is {sys.platform}; --backend mil runs the same files anywhere"
        )


def open_package(
    package: Path, function: str, backend: str, precision: str = "fp16", beside: Predictor | None = None,
    target: str = "ane",
) -> Predictor:  # fmt: skip
    """Opens `function` of the .mlpackage with a backend of BACKENDS.

    `precision` is the MIL runtime's alone; `beside` is another function of the package, opened alike: the MIL runtime
    shares its weights. `target` is what the package was made for, "ane" or "gpu": Core ML runs it there.
    """
    check_backend(backend)
    if backend == "mil":
        from validation.mil import MILModel

        if isinstance(beside, MILModel):
            return beside.function(function)
        return MILModel(package, function_name=function, precision=precision)
    import coremltools

    # not ALL: Core ML then chooses per op and may hand values back and forth between the GPU and the Neural Engine
    units = {"ane": coremltools.ComputeUnit.CPU_AND_NE, "gpu": coremltools.ComputeUnit.CPU_AND_GPU}[target]
    model: Predictor = coremltools.models.MLModel(str(package), compute_units=units, function_name=function)
    return model
