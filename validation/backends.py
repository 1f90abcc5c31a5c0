"""Who executes a package: the MIL runtime anywhere, or Core ML on a Mac, behind one interface.

A backend opens one function of one package as a `Predictor`, with the surface of coremltools' MLModel. What a
machine lacks is said by name; nothing falls back to another backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fastvlm.errors import UsageError
from validation.coreml import here
from validation.coreml.predictor import CoreMLPredictor
from validation.coreml.units import OF_TARGET, check_units

BACKENDS = ("mil", "coreml")


class Predictor(Protocol):
    """One function of a package, ready to run; the surface of coremltools' MLModel that we use."""

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """Runs the function once: named inputs to named outputs; `state` is updated in place."""

    def make_state(self) -> Any:
        """Returns a fresh, zeroed state that every function of the package accepts."""


def check_backend(backend: str, compute_units: str | None = None, stateful: bool = True) -> None:
    """Raises UsageError for a backend nobody knows, MissingDependency for one that this machine cannot run.

    `compute_units` are Core ML's; `stateful` says whether what will be run keeps a state.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    check_units(backend, compute_units)
    if backend == "coreml":
        oldest = here.STATEFUL if stateful else here.STATELESS
        here.need_mac("backend coreml", "--backend mil runs the same files anywhere", (oldest,))


def prepare(backend: str) -> None:
    """Loads a backend's libraries, which takes seconds, so that the first package opened takes its own time alone.

    Raises MissingDependency where they do not load.
    """
    if backend == "mil":
        from validation.mil.schema import model_message

        model_message()
    elif backend == "onnx":
        import onnxruntime  # noqa: F401
    else:
        here.library()


def open_package(
    package: Path, function: str, backend: str, precision: str = "fp16", beside: Predictor | None = None,
    target: str = "ane", compute_units: str | None = None,
) -> Predictor:  # fmt: skip
    """Opens `function` of the .mlpackage with a backend of BACKENDS.

    `precision` is the MIL runtime's alone; `beside` is another function of the package, opened alike: the MIL runtime
    shares its weights, Core ML its process. `target` is what the package was made for, "ane" or "gpu": Core ML runs it
    there, unless `compute_units` (of COMPUTE_UNITS) say otherwise.
    """
    check_backend(backend, compute_units, stateful=False)  # whoever needs a state asks for more
    if backend == "mil":
        from validation.mil import MILModel

        if isinstance(beside, MILModel):
            return beside.function(function)
        return MILModel(package, function_name=function, precision=precision)
    other = beside if isinstance(beside, CoreMLPredictor) else None
    return CoreMLPredictor(package, function, compute_units or OF_TARGET[target], other)
