"""How much memory a bundle needs on a device, estimated from its sizes, and which phones give an app that much.

The estimate and its basis are `fastvlm.app_limits`'.
"""

from __future__ import annotations

from typing import Any

from fastvlm.app_limits import BASIS, map_bytes, measured_classes, state_bytes, verdict
from fastvlm.build import Build
from fastvlm.devices import Device
from fastvlm.mlpackage import WEIGHT_FILE
from ios_bundle.promises import language_entries, packages


def memory_record(build: Build) -> dict[str, Any]:
    """Returns the metadata's entry: the parts of the need in bytes, and what each class of phone gives an app."""
    parts = {
        "weights": sum(_weights(build, package) for package in packages(build)),
        "state": _state(build),
        "activations": _activations(build),
    }
    need = sum(parts.values())
    return {
        "need_bytes": need,
        "of": parts,
        "basis": BASIS,
        "device_classes": [_class(device, need) for device in measured_classes()],
    }


def _weights(build: Build, package: str) -> int:
    return int(build.manifest["files"][f"{package}/{WEIGHT_FILE}"]["bytes"])


def _state(build: Build) -> int:
    return state_bytes(entry["state"]["shape"] for entry in language_entries(build) if "state" in entry)


def _activations(build: Build) -> int:
    width = int(build.manifest["model"]["vision"]["widths"][0])
    return map_bytes(width, max(build.image_sizes))


def _class(device: Device, need: int) -> dict[str, Any]:
    """What the phones with as much memory as `device` give one app, of which one had it measured."""
    app = device.app_memory
    assert app is not None
    default, increased = (round(figure.value * 1e9) for figure in (app.default, app.increased))
    return {
        "memory_gb": device.memory_gb[0], "measured_on": device.name, "app_bytes": default,
        "app_bytes_increased": increased, "fits": verdict(need, app), "source": app.default.source,
    }  # fmt: skip
