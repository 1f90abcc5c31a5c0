"""What an app may weigh and use, and what a model takes of it in memory: one place for `bundle` and `fit`.

The need is estimated from sizes: all weights (an engine holds them, they are not paged in row by row), the state, and
three maps of the encoder's first stage, its largest, for the picture that is being encoded. The embedding table is
mapped and read row by row, so only its rows count, which are few. Nothing of this was measured on a device; one report
has far less (264 MB for 1.7 GB of int8 weights on an iPhone 17 Pro's engine: john-rocky/CoreML-LLM, ModelDownloader),
so what fits by it should fit.
It knows neither builds nor packages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fastvlm.devices import DEVICES, AppMemory, Device

# Bytes of an app, uncompressed: App Store Connect, "Maximum build file sizes".
APP_LIMIT = 4_000_000_000
MAC_APP_LIMIT = 200_000_000_000
HALF = 2  # bytes of an fp16 number
FIRST_MAPS = 3  # input, output and one between, of the stage at half the image's side
BASIS = "estimated from sizes; not measured on a device"


def app_limit(device: Device) -> int:
    """Returns the bytes that an app for `device` may have."""
    return MAC_APP_LIMIT if device.kind == "mac" else APP_LIMIT


def state_bytes(shapes: Iterable[Sequence[int]]) -> int:
    """Returns the bytes of the states of a language model's packages."""
    return sum(HALF * math.prod(shape) for shape in shapes)


def map_bytes(width: int, side: int) -> int:
    """Returns the bytes that maps of the encoder's first stage, `width` channels wide, take at `side` pixels."""
    return FIRST_MAPS * HALF * width * (side // 2) ** 2


def measured_classes() -> tuple[Device, ...]:
    """Returns the devices of which somebody measured what an app gets."""
    return tuple(device for device in DEVICES if device.app_memory is not None)


def class_of(device: Device) -> Device | None:
    """Returns the measured phone that stands in for a phone or tablet: itself, else that with as much memory or less.

    None for a Mac, whose system sets an app no limit of its own.
    """
    if device.kind == "mac" or device.app_memory is not None:
        return device if device.app_memory is not None else None
    held = min(device.memory_gb)
    below = [each for each in measured_classes() if each.memory_gb[0] <= held]
    return max(below, key=lambda each: each.memory_gb[0], default=None)


def verdict(need: int, app: AppMemory) -> str:
    """Returns whether an app that needs so many bytes fits: "yes", "with increased-memory-limit" or "no"."""
    default, increased = (round(figure.value * 1e9) for figure in (app.default, app.increased))
    return "yes" if need <= default else "with increased-memory-limit" if need <= increased else "no"
