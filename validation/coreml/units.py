"""Where Core ML may run a model: Apple's four choices, coremltools' names for them, and which one a target means."""

from __future__ import annotations

from fastvlm.build import COMPUTE_UNITS
from fastvlm.errors import UsageError

NAMES = dict(zip(COMPUTE_UNITS, ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"), strict=True))
# not `all`: Core ML then chooses per op and may hand values back and forth between the GPU and the Neural Engine
OF_TARGET = {"ane": "cpuAndNeuralEngine", "gpu": "cpuAndGPU"}


def check_units(backend: str, units: str | None) -> None:
    """Raises UsageError for a choice that nobody knows, or for one beside a backend that is not Core ML."""
    if units is not None and units not in NAMES:
        raise UsageError(f"unknown compute units {units!r}; known are {', '.join(NAMES)}")
    if units is not None and backend != "coreml":
        raise UsageError(
            f"--compute-units {units} is Core ML's choice, and the backend is {backend}; add --backend coreml"
        )
