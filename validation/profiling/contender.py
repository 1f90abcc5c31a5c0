"""Who is measured: a build on one backend, told apart by a name; and what is refused before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.build import COMPUTE_UNITS, Build, read_build
from fastvlm.errors import UsageError
from validation.backends import check_backend
from validation.coreml import here
from validation.coreml.remote import ConnectedDevice, connected_devices
from validation.coreml.units import OF_TARGET, check_units
from validation.profiling.workload import Workload, workload_of

PACKAGE_BENCH = "validation.profiling.bench:PackageBench"
DEVICE_BENCH = "validation.coreml.remote:DeviceBench"


@dataclass(frozen=True)
class Contender:
    """A build on a backend. compute_units: Core ML's, None for others. name: how a table calls it, no path in it.

    device: where it is measured by coremltools' remote tools, None for this machine; `team` signs the app for it.
    """

    name: str
    build: Build
    backend: str
    compute_units: str | None
    image_size: int | None
    work: Workload
    device: ConnectedDevice | None = None
    team: str = ""
    serves: str = PACKAGE_BENCH  # the class that measures it, as `Child` takes it

    @property
    def given(self) -> dict[str, Any]:
        """What that class is made of."""
        given = {
            "build": str(self.build.folder), "compute_units": self.compute_units, "image_size": self.image_size,
        }  # fmt: skip
        if self.device is not None:
            return {**given, "udid": self.device.udid, "team": self.team}
        return {**given, "backend": self.backend}


@dataclass(frozen=True)
class Asked:
    """What a user asks for: backends, compute units (none: every choice), an image size, a connected device."""

    backends: Sequence[str] = ()  # none: the device alone where one is named, else Core ML on a Mac, or the MIL runtime
    compute_units: Sequence[str] = ()
    image_size: int | None = None
    device_udid: str | None = None
    team: str | None = None

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The backends on this machine."""
        usual = "coreml" if here.system() == "darwin" else "mil"
        return tuple(dict.fromkeys(self.backends or (() if self.device_udid else (usual,))))


def contenders_of(builds: Sequence[str | Path], asked: Asked) -> list[Contender]:
    """Returns every build on every backend, Core ML once for each of the compute units.

    Raises UsageError, MissingDependency, BuildError or PromptError for what cannot be measured, before anything runs.
    """
    if not builds:
        raise UsageError("no build to profile; name at least one build folder")
    if asked.compute_units and "coreml" not in asked.runtimes and asked.device_udid is None:
        raise UsageError("--compute-units are Core ML's choice, and no backend is coreml; add --backend coreml")
    for backend in asked.runtimes:
        check_backend(backend, stateful=False)
    for choice in asked.compute_units:
        check_units("coreml", choice)
    device = _device(asked)
    found = []
    for name, build in _named([read_build(folder) for folder in builds]):
        _check_size(build, asked.image_size)
        common = (asked.image_size, workload_of(build, asked.image_size))
        for backend, units in _engines(asked):
            check_backend(backend, units, stateful=build.purpose is None)
            found.append(Contender(f"{name}, {_label(backend, units)}", build, backend, units, *common))
        if device is not None:
            for there in asked.compute_units or (OF_TARGET[build.target],):
                label = f"{name}, {_label(device.kind, there)}"
                found.append(Contender(label, build, "coreml", there, *common, device, asked.team or "", DEVICE_BENCH))
    if "coreml" in asked.runtimes:
        here.library()  # last: it takes seconds where it is there
    return found


def _engines(asked: Asked) -> Iterator[tuple[str, str | None]]:
    """Each backend of this machine with each of its compute units."""
    for backend in asked.runtimes:
        if backend == "coreml":
            yield from ((backend, units) for units in dict.fromkeys(asked.compute_units or COMPUTE_UNITS))
        else:
            yield backend, None


def _label(engine: str, units: str | None) -> str:
    return f"{engine} {units}" if units else engine


def _device(asked: Asked) -> ConnectedDevice | None:
    """The device that is asked for, if it is there."""
    if asked.device_udid is None:
        return None
    listed = connected_devices()
    if not asked.team:
        raise UsageError("--device-udid needs --team, the developer team that signs the app which measures there")
    for device in listed:
        if device.udid == asked.device_udid:
            return device
    raise UsageError(
        f"--device-udid {asked.device_udid[:60]} is not there; `fastvlm profile --connected` lists what is"
    )


def _named(builds: Sequence[Build]) -> list[tuple[str, Build]]:
    """Builds with their folders' names, numbered where several are alike; a folder's path is nobody's business."""
    names = [build.folder.resolve().name for build in builds]
    alike, seen, found = Counter(names), Counter[str](), []
    for name, build in zip(names, builds, strict=True):
        seen[name] += 1
        found.append((f"{name} ({seen[name]})" if alike[name] > 1 else name, build))
    return found


def _check_size(build: Build, image_size: int | None) -> None:
    if image_size is None:
        return
    if build.encoder is None:
        raise UsageError(f"--image-size {image_size}: {build.folder} has no encoder, leave it out")
    if image_size not in build.image_sizes:
        raise UsageError(
            f"--image-size {image_size}: {build.folder} has no encoder of that size, it has {list(build.image_sizes)}"
        )
