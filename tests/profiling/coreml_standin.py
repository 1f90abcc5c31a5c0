"""coremltools as it is on a Mac, as far as this project calls it: what runs is the MIL runtime.

Names, parameters and habits are those of coremltools 9.0 (a test holds them to the real classes): a model that cannot
be loaded warns and has no proxy, fp16 inputs are put back as float32, a plan tells of the default function alone, and
asked of a package that is not compiled it aborts the process (coremltools#2757), a model on a device keeps the event
loop that loaded it. What COREML_STANDIN names goes wrong, one fault at a time:

    "abort plan"          asking for any plan ends the process
    "kill predict NAME"   running that function ends the process (coremltools#2758)
    "refuse load NAME"    that function cannot be loaded
    "refuse predict NAME" it fails when it runs
    "refuse state"        no state is made
    "untold"              no duration is told
    "no signing"          Xcode does not build the app that measures on a device
    "cpu OP"              the plan puts ops of that kind on the CPU
    "noise"               what it computes is off by a tenth
"""

from __future__ import annotations

import asyncio
import enum
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ENGINE_REFUSES = {"int32"}  # element types that the stand-in's plan keeps off the Neural Engine
SYSCTL = {"hw.model": "Mac14,2", "machdep.cpu.brand_string": "Apple M2"}
opened: list[tuple[str, str, str]] = []  # package, function, compute units of every model so far
planned: list[str] = []  # compute units of every plan so far


class ComputeUnit(enum.Enum):
    """coremltools.ComputeUnit."""

    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4


def fault(kind: str) -> str | None:
    """What a planted fault of that kind is about; None where none is planted."""
    planted = os.environ.get("COREML_STANDIN", "")
    return planted.removeprefix(kind).strip() if planted.startswith(kind) else None


def told(nanoseconds: int) -> int | None:
    """A duration, as far as it is told."""
    return None if fault("untold") is not None else nanoseconds


class MLModel:
    """coremltools.models.MLModel, loaded from the path of a package."""

    def __init__(
        self, model: str, compute_units: ComputeUnit = ComputeUnit.ALL, function_name: str | None = None, **_: Any
    ) -> None:
        from validation.mil import MILModel

        assert isinstance(model, str)
        assert isinstance(compute_units, ComputeUnit)
        self._takes = _inputs_of(model, function_name)
        self.compute_unit, self.function_name, self._path = compute_units, function_name, model
        self.__proxy__: Any = object()
        if fault("refuse load") == function_name:
            warnings.warn("You will not be able to run predict() on this Core ML model.", RuntimeWarning, stacklevel=2)
            self.__proxy__ = None
        self._model = MILModel(model, function_name=function_name)
        opened.append((Path(model).name, function_name or "", compute_units.name))

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """Runs once."""
        if fault("kill predict") == self.function_name:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("refuse predict") == self.function_name:
            raise RuntimeError("Unable to compute the prediction using ML Program.")
        unknown = [name for name in data if name not in self._takes]
        if unknown:
            raise KeyError(
                f'Provided key "{unknown[0]}", in the input dict, does not match any of the model input names'
            )
        for name, value in data.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float16:
                data[name] = value.astype(np.float32)
        outputs = self._model.predict(dict(data), state)
        return {name: _noisy(value) for name, value in outputs.items()} if fault("noise") is not None else outputs

    def make_state(self) -> Any:
        """A fresh state."""
        if fault("refuse state") is not None:
            raise RuntimeError("Failed to create the state.")
        return self._model.make_state()

    @property
    def load_duration_in_nano_seconds(self) -> int | None:
        """As Core ML tells it."""
        return told(2_000_000)

    @property
    def last_predict_duration_in_nano_seconds(self) -> int:
        """As Core ML tells it."""
        return 3_000_000


def _inputs_of(model: str, function: str | None) -> set[str]:
    """What a function takes; raises what coremltools does where it reads a package (a test compares the two)."""
    from validation.mil.schema import model_message

    if not Path(model).exists():
        raise FileNotFoundError(2, "No such file or directory", model)
    if not (Path(model) / "Manifest.json").is_file():
        raise RuntimeError(f"A valid manifest does not exist at path: {model}/Manifest.json")
    spec = model_message()
    spec.ParseFromString((Path(model) / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    described = {each.name: each.input for each in spec.description.functions} or {"main": spec.description.input}
    if function is not None and function not in described:
        raise ValueError(f"function_name {function} not found in the model.")
    return {each.name for each in described.get(function or spec.description.defaultFunctionName, ())}


def _noisy(value: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(value.shape) * np.abs(value).max() / 10
    return (value.astype(np.float32) + noise).astype(value.dtype)


def compile_model(model: str, destination_path: str | None = None) -> str:
    """coremltools.models.utils.compile_model: a folder that a plan can be made of."""
    assert model.endswith(".mlpackage")
    assert destination_path is not None
    shutil.copytree(model, destination_path)
    (Path(destination_path) / "coremldata.bin").write_bytes(b"")
    return destination_path


class _Device:
    """Any compute device."""


class MLCPUComputeDevice(_Device):
    """The CPU."""


class MLGPUComputeDevice(_Device):
    """The GPU."""


class MLNeuralEngineComputeDevice(_Device):
    """The Neural Engine."""


@dataclass
class Operation:
    """MLModelStructureProgramOperation."""

    operator_name: str
    outputs: list[Any]
    dtype: str = ""
    blocks: list[Any] = field(default_factory=list)


class MLComputePlan:
    """coremltools.models.compute_plan.MLComputePlan."""

    def __init__(self, path: Path, units: ComputeUnit, function: str | None = None) -> None:
        from validation.program import read_program

        program = read_program(path)
        self._units, self._told = units, function or program.default
        functions = {each.name: SimpleNamespace(block=_block(each.ops)) for each in program.functions}
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions=functions))
        default = functions.get(self._told)
        self._default = {id(op) for op in default.block.operations} if default else set()

    @classmethod
    def load_from_path(cls, path: str, compute_units: ComputeUnit = ComputeUnit.ALL) -> MLComputePlan:
        """A plan of a compiled model; aborts as coremltools 9.0 does where it is none."""
        if fault("abort plan") is not None or not (Path(path) / "coremldata.bin").is_file():
            os.abort()
        planned.append(compute_units.name)
        return cls(Path(path), compute_units)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Operation) -> Any:
        """Where an op would run; nothing for constants, and for a function that is not the default."""
        if operation.operator_name == "const" or id(operation) not in self._default:
            return None
        device = self._preferred(operation)
        return SimpleNamespace(preferred_compute_device=device, supported_compute_devices=[device])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Operation) -> Any:
        """Equal shares."""
        if operation.operator_name == "const" or id(operation) not in self._default:
            return None
        return SimpleNamespace(weight=1 / len(self._default))

    def _preferred(self, operation: Operation) -> _Device:
        kind = operation.operator_name.rpartition(".")[2]
        if self._units is ComputeUnit.CPU_ONLY:
            return MLCPUComputeDevice()
        if self._units is ComputeUnit.CPU_AND_GPU:
            return MLGPUComputeDevice()
        refused = operation.dtype in ENGINE_REFUSES or kind == fault("cpu")
        return MLCPUComputeDevice() if refused else MLNeuralEngineComputeDevice()


def _block(ops: Any) -> Any:
    constant = Operation("const", [SimpleNamespace(name="a_constant")])
    named = [
        Operation(
            f"ios18.{op.type}", [SimpleNamespace(name=value.name) for value in op.outputs],
            op.outputs[0].dtype.name if op.outputs and op.outputs[0].dtype else "",
        )
        for op in ops
    ]  # fmt: skip
    return SimpleNamespace(operations=[constant, *named])


class DeviceCtlError(Exception):
    """remote_device._DeviceCtlError."""


class AppBuilder:
    """remote_device._AppBuilder, which reports a failed build of Xcode's by an error of its own."""

    class Error(Exception):
        """remote_device._AppBuilder.Error."""


@dataclass(frozen=True)
class AppSigningCredentials:
    """remote_device.AppSigningCredentials."""

    development_team: str | None = ""
    provisioning_profile_uuid: str | None = None
    bundle_identifier: str | None = None


@dataclass(frozen=True)
class Device:
    """remote_device.Device."""

    udid: str
    type: Any
    os_version: str
    state: Any
    name: str = "Somebody's iPhone"
    session: Any = None

    @staticmethod
    def get_devices() -> list[Device]:
        """One phone."""
        if fault("no devicectl") is not None:
            raise ValueError("The 'devicectl' command is required.")
        kind, state = SimpleNamespace(value="iphone"), SimpleNamespace(value="connected")
        return [Device("00008130-STANDIN", kind, "18.5", state)]

    async def prepare_for_model_debugging(self, credentials: Any = None, **_: Any) -> Device:
        """The phone with its app running; refuses a team that is none."""
        await asyncio.sleep(0)
        if fault("no signing") is not None:
            raise AppBuilder.Error("[Error Code 65] None")
        if credentials.development_team != "TEAM":
            raise ValueError("Signing requires a development team.")
        return Device(self.udid, self.type, self.os_version, self.state, session=object())


class RemoteMLModelAsyncWrapper:
    """async_wrapper.RemoteMLModelAsyncWrapper: arrays only, no state."""

    def __init__(
        self, spec_or_path: str, weights_dir: str, device: Device, compute_units: ComputeUnit = ComputeUnit.ALL,
        function_name: str | None = None,
    ) -> None:  # fmt: skip
        assert isinstance(weights_dir, str)
        assert device.session is not None, "not prepared"
        self._path, self._units, self._function = spec_or_path, compute_units, function_name
        self._model: MLModel | None = None

    async def load(self) -> None:
        """Loads on the device."""
        self._loop = asyncio.get_running_loop()
        self._model = MLModel(self._path, self._units, self._function)

    async def predict(self, inputs: dict[str, Any], state: Any = None) -> dict[str, Any]:
        """Runs on the device."""
        assert self._model is not None
        assert self._loop is asyncio.get_running_loop()
        arrays = {name: np.array(value) for name, value in inputs.items()}
        wrong = [str(value.dtype) for value in arrays.values() if value.dtype == np.uint8]
        if wrong:
            raise ValueError(f"{wrong[0]} is not supported")
        return self._model.predict(arrays)

    async def retrieve_compute_plan(self) -> MLComputePlan:
        """The plan of the function on the device."""
        assert self._loop is asyncio.get_running_loop()
        return MLComputePlan(Path(self._path), self._units, self._function)

    @property
    def load_duration_in_nano_seconds(self) -> int | None:
        """As the device tells it."""
        return None if self._model is None else told(5_000_000)

    @property
    def last_predict_duration_in_nano_seconds(self) -> int | None:
        """As the device tells it."""
        return None if self._model is None else told(7_000_000)


LIBRARY = SimpleNamespace(
    ComputeUnit=ComputeUnit,
    models=SimpleNamespace(
        MLModel=MLModel,
        utils=SimpleNamespace(compile_model=compile_model),
        compute_plan=SimpleNamespace(MLComputePlan=MLComputePlan),
        compute_device=SimpleNamespace(
            MLCPUComputeDevice=MLCPUComputeDevice, MLGPUComputeDevice=MLGPUComputeDevice,
            MLNeuralEngineComputeDevice=MLNeuralEngineComputeDevice,
        ),
    ),
)  # fmt: skip
REMOTE = (
    SimpleNamespace(
        Device=Device,
        AppSigningCredentials=AppSigningCredentials,
        _DeviceCtlError=DeviceCtlError,
        _AppBuilder=AppBuilder,
    ),
    SimpleNamespace(RemoteMLModelAsyncWrapper=RemoteMLModelAsyncWrapper),
)


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Makes this process believe that it runs on a Mac, with all that stands above in coremltools' place."""
    from validation import children, machine
    from validation.coreml import here

    put(here, "system", lambda: "darwin")
    put(here, "macos_version", lambda: (15, 5))
    put(here, "library", lambda: LIBRARY)
    put(here, "remote_tools", lambda: REMOTE)
    put(machine, "_sysctl", lambda name: SYSCTL.get(name, ""))
    if "coreml_standin" not in children.START:
        begin, end = children.START.split("from validation.children", 1)
        put(children, "START", f"{begin}import coreml_standin; coreml_standin.install(); from validation.children{end}")
