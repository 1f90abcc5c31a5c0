"""A phone or tablet that is connected to a Mac, through coremltools' remote device tools (experimental there).

What those tools offer, read from coremltools 9.0 (`remote_device.py`, `async_wrapper.py`): a list of devices; an app
that they build with Xcode and sign with the user's team; in it the load of a function with its duration, Core ML's plan
on that device, and runs with the duration of each. A run takes arrays of float16, float32, float64 or int32 and no
state. So of our packages only the encoder for Apple's app can be run there; the encoder takes an image and the language
model a state, and of both the load and the plan are all that can be had. Nothing here has met a device yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvlm.build import Build, read_build
from fastvlm.errors import ExecutionError, MissingDependency, UsageError
from validation.children import Tell
from validation.coreml import here
from validation.coreml.plan import rows_of
from validation.coreml.units import NAMES, OF_TARGET
from validation.encoder_form import form_of
from validation.mil.package import check_package

INSTEAD = "on another system, `fastvlm profile BUILD` measures the MIL runtime, and `fastvlm lint` judges by rules"


@dataclass(frozen=True)
class ConnectedDevice:
    """A device as the list names it. Its owner's name for it is left out."""

    udid: str
    kind: str  # "iphone", "ipad", …
    os: str
    state: str  # "connected", "disconnected", …

    def as_json(self) -> dict[str, str]:
        """The same as plain data."""
        return asdict(self)


def need_remote() -> tuple[Any, Any]:
    """Returns coremltools' remote tools; MissingDependency where they cannot be had."""
    here.need_mac("measuring on a connected device", INSTEAD, (here.STATEFUL,))
    return here.remote_tools()


def connected_devices() -> list[ConnectedDevice]:
    """Returns the phones and tablets that Xcode's devicectl knows, connected or not.

    Raises MissingDependency off a Mac and without Xcode, ExecutionError where devicectl fails.
    """
    return [
        ConnectedDevice(found.udid, found.type.value, str(found.os_version), found.state.value)
        for found in _listed(need_remote()[0])
    ]


def _listed(tools: Any) -> list[Any]:
    try:
        return list(tools.Device.get_devices())
    except ValueError as error:  # what it raises without the command
        raise MissingDependency(f"connected devices are found by Xcode's devicectl: {error}; install Xcode") from error
    except tools._DeviceCtlError as error:
        raise ExecutionError(f"Xcode's devicectl failed: {error}; does `xcrun devicectl list devices` work?") from error


class DeviceBench:
    """A build on a connected device, as `validation.profiling.bench.PackageBench` is one here; lives in a child.

    Durations are those that the device tells, in seconds: no transfer is in them. One that it does not tell has no row.
    """

    def __init__(self, tell: Tell, build: str, compute_units: str | None, image_size: int | None, udid: str, team: str):
        self.build: Build = read_build(build)
        self.units = compute_units or OF_TARGET[self.build.target]
        self.side = image_size or next(iter(self.build.image_sizes), 0)
        self._tell, self._team = tell, team
        self._tools, self._wrappers = need_remote()
        self._runner = asyncio.Runner()  # one for all: a loaded model keeps the event loop that loaded it
        try:
            self._device = self._prepared(udid)
        except BaseException:
            self.close()
            raise
        self._loaded: dict[tuple[Path, str], Any] = {}

    def _prepared(self, udid: str) -> Any:
        """The device with the app that measures running on it."""
        found = [device for device in _listed(self._tools) if device.udid == udid]
        if not found:
            raise UsageError(f"--device-udid {udid} is not connected; `fastvlm profile --connected` lists what is")
        self._tell("building the app that measures")
        credentials = self._tools.AppSigningCredentials(development_team=self._team)
        return self._done(lambda: found[0].prepare_for_model_debugging(credentials=credentials))

    def _done(self, started: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a coroutine; ExecutionError for what the tools raise where a device or Xcode refuses."""
        tools = self._tools
        try:
            return self._runner.run(started())
        except (ValueError, RuntimeError, OSError, tools._DeviceCtlError, tools._AppBuilder.Error) as error:
            raise ExecutionError(f"the device's tools failed: {error}; unlock it, and check Xcode's signing") from error

    def close(self) -> None:
        """Ends the event loop; what is loaded cannot be used any more."""
        self._runner.close()

    def load(self) -> list[list[Any]]:
        """Loads every function, after what was loaded before is dropped; rows as `PackageBench.load` gives them."""
        self._loaded.clear()
        durations: dict[str, list[int | None]] = {}
        for part, package, function in self._functions():
            self._tell(f"load {function}")
            check_package(package)
            model = self._wrappers.RemoteMLModelAsyncWrapper(
                spec_or_path=str(package), weights_dir="", device=self._device,
                compute_units=self._library_units(), function_name=function,
            )  # fmt: skip
            self._done(model.load)
            self._loaded[package, function] = model
            durations.setdefault(part, []).append(model.load_duration_in_nano_seconds)
        return [row for part, found in durations.items() for row in _row(f"{part}_core_ml", found)]

    def run(self) -> list[list[Any]]:
        """Runs what takes arrays and keeps no state: the encoder for Apple's app; nothing else."""
        form = form_of(self.build)
        if self.build.encoder is None or form.picture:
            return []
        model = self._loaded[self.build.encoder, form.function(self.side)]
        self._tell("encode")
        pixels = np.zeros((self.side, self.side, 3), np.uint8)
        self._done(lambda: model.predict(form.inputs(pixels)))
        return list(_row("encode", [model.last_predict_duration_in_nano_seconds]))

    def memory(self) -> dict[str, int]:
        """Nothing: the tools do not tell."""
        return {}

    def plan(self) -> list[list[Any]]:
        """Returns [package, function, rows of `OpPlace`] of every function, planned on the device."""
        devices = here.library().models.compute_device
        found = []
        for (package, function), model in self._loaded.items():
            self._tell(f"planning {function}")
            plan = self._done(model.retrieve_compute_plan)
            found.append([package.name, function, list(rows_of(plan, function, devices))])
        return found

    def _library_units(self) -> Any:
        return here.library().ComputeUnit[NAMES[self.units]]

    def _functions(self) -> Iterator[tuple[str, Path, str]]:
        if self.build.encoder is not None:
            yield "load_encoder", self.build.encoder, form_of(self.build).function(self.side)
        for stage in self.build.language:
            for function in ("prefill", "decode") if stage.prefill else ("decode",):
                yield "load_language", stage.package, function


def _row(stage: str, nanoseconds: list[int | None]) -> Iterator[list[Any]]:
    """One row with the sum of durations; none where the device keeps one of them to itself."""
    known = [each for each in nanoseconds if each is not None]
    if len(known) == len(nanoseconds):
        yield [stage, None, sum(known) / 1e9]
