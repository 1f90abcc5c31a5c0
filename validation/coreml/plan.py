"""MLComputePlan, read in a child process: where Core ML would run each op, before anything runs.

It can abort the process that asks (coremltools#2757), so `plans_of` asks a `PlanReader` in a child. A plan is made for
one function: coremltools passes no function's name on, Core ML then takes the package's default. So each function is
asked for in a copy of the package whose default it is; weights are linked, not copied. What a plan is made from lies in
a folder of the one who asks: a process that is aborted removes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.errors import ExecutionError
from fastvlm.mlpackage import MODEL_FILE
from validation.children import Child, Limits, Tell
from validation.coreml import here
from validation.coreml.placement import FunctionPlan, OpPlace
from validation.coreml.units import NAMES
from validation.mil.package import check_package, parse_spec

SERVES = "validation.coreml.plan:PlanReader"
LIMITS = Limits(seconds=3600.0)  # of one function's plan, its compilation included


def plans_of(package: Path, functions: list[str], units: str) -> tuple[FunctionPlan, ...]:
    """Returns where Core ML would run the ops of each function of a package, with `units` of COMPUTE_UNITS.

    Raises MissingDependency off a Mac, ExecutionError where Core ML makes no plan, ProcessError where it ends the
    process that asked.
    """
    here.need_mac("a compute plan", "`fastvlm lint` says by rules what it would be", here.PLANS)
    name = f"the compute plan of {package.name} on {units}"
    with tempfile.TemporaryDirectory() as folder:
        reader = Child(SERVES, name, LIMITS, package=str(package), units=units, folder=folder)
        try:
            rows = {function: reader.call("read", function=function) for function in functions}
        finally:
            reader.close()
    return tuple(
        FunctionPlan(package.name, function, tuple(OpPlace(*row) for row in found)) for function, found in rows.items()
    )


class PlanReader:
    """Reads the plans of one package; lives in a child. folder: where what it compiles lies for a while."""

    def __init__(self, tell: Tell, package: str, units: str, folder: str) -> None:
        self.package, self.units, self.folder, self._tell = Path(package), units, folder, tell
        self._library = here.library()

    def read(self, function: str) -> list[list[Any]]:
        """Returns the ops of a function as rows of `OpPlace`."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            self._tell(f"compiling {function}")
            package = with_default(self.package, function, Path(folder))
            try:
                compiled = self._library.models.utils.compile_model(str(package), f"{folder}/model.mlmodelc")
                self._tell(f"planning {function}")
                plan = self._library.models.compute_plan.MLComputePlan.load_from_path(
                    path=str(compiled), compute_units=self._library.ComputeUnit[NAMES[self.units]]
                )
            except RuntimeError as error:
                raise ExecutionError(f"Core ML makes no plan for {function} of {self.package.name}: {error}") from error
            return list(rows_of(plan, function, self._library.models.compute_device))


def with_default(package: Path, function: str, folder: Path) -> Path:
    """Returns a copy of a package in `folder` whose default function is `function`; its weights are the same files."""
    check_package(package)
    copy = folder / package.name
    shutil.copytree(package, copy, copy_function=_linked)
    file = copy / MODEL_FILE
    spec = parse_spec(file)
    if spec.description.defaultFunctionName not in ("", function):
        spec.description.defaultFunctionName = function
        file.parent.chmod(0o700)  # a copied folder may be as read-only as the build's
        file.unlink()  # a link: the original must stay as it is
        file.write_bytes(spec.SerializeToString())
    return copy


def _linked(source: str, target: str) -> str:
    """Links a file, or copies it where the temporary folder is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def rows_of(plan: Any, function: str, devices: Any) -> Iterator[list[Any]]:
    """The ops of a function in a plan as rows of `OpPlace`; ExecutionError where the plan has no such function."""
    program = plan.model_structure.program
    if program is None or function not in program.functions:
        raise ExecutionError(f"Core ML's plan has no function {function}; its macOS may be too old for the package")
    names = {
        devices.MLNeuralEngineComputeDevice: "neuralEngine", devices.MLGPUComputeDevice: "gpu",
        devices.MLCPUComputeDevice: "cpu",
    }  # fmt: skip
    waiting = [program.functions[function].block]
    while waiting:
        for op in waiting.pop(0).operations:
            waiting += op.blocks
            kind = op.operator_name.rpartition(".")[2]  # "ios18.conv"
            if kind == "const" or kind.startswith("constexpr"):
                continue
            usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
            cost = plan.get_estimated_cost_for_mlprogram_operation(op)
            device = None if usage is None else names.get(type(usage.preferred_compute_device))
            yield [kind, op.outputs[0].name if op.outputs else kind, device, None if cost is None else cost.weight]
