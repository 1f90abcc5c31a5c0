"""How much memory a bundle needs on a device, estimated from its sizes, and which phones give an app that much.

Estimated: the weights of all packages (the Neural Engine holds them, they are not paged in row by row), the state, and
three maps of the encoder's first stage, its largest, for the picture that is being encoded. The embedding table is
mapped and read row by row, so only its rows count, which are few. Nothing of this was measured on a device.
"""

from __future__ import annotations

import math
from typing import Any

from fastvlm.build import Build
from fastvlm.devices import DEVICES, Device
from fastvlm.mlpackage import WEIGHT_FILE
from ios_bundle.promises import language_entries, packages

HALF = 2  # bytes of an fp16 number
FIRST_MAPS = 3  # input, output and one between, of the stage at half the image's side
BASIS = "estimated from sizes; not measured on a device"


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
        "device_classes": [_class(device, need) for device in DEVICES if device.app_memory is not None],
    }


def _weights(build: Build, package: str) -> int:
    return int(build.manifest["files"][f"{package}/{WEIGHT_FILE}"]["bytes"])


def _state(build: Build) -> int:
    return sum(HALF * math.prod(entry["state"]["shape"]) for entry in language_entries(build) if "state" in entry)


def _activations(build: Build) -> int:
    width = int(build.manifest["model"]["vision"]["widths"][0])
    return FIRST_MAPS * HALF * width * (max(build.image_sizes) // 2) ** 2


def _class(device: Device, need: int) -> dict[str, Any]:
    """What the phones with as much memory as `device` give one app, of which one had it measured."""
    app = device.app_memory
    assert app is not None
    default, increased = (round(figure.value * 1e9) for figure in (app.default, app.increased))
    fits = "yes" if need <= default else "with increased-memory-limit" if need <= increased else "no"
    return {
        "memory_gb": device.memory_gb[0], "measured_on": device.name, "app_bytes": default,
        "app_bytes_increased": increased, "fits": fits, "source": app.default.source,
    }  # fmt: skip
