"""What a build takes of a device's memory while it answers, and what the device gives an app.

The need is `fastvlm.app_limits`': weights, state, the largest maps of the picture. Weights that an engine makes fp16
before it reads them count in fp16.
It knows no times.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastvlm.app_limits import class_of, map_bytes, verdict
from fastvlm.devices import Device
from fastvlm_ref.config import VisionConfig

MAC_SHARE = 2 / 3  # of a Mac's memory that one app is taken to have; the rest is the system's and everybody else's
CROWDED = 4  # GB of memory, with which Apple's own app is reported to crash
REPORTED = "0.5B in fp16 is reported to crash there in Apple's own app (apple/ml-fastvlm#8, #24)"
ROOM = 0.9  # of the most that an app gets: a tenth is left to the app itself, its pictures and its camera
FITS = ("yes", "with increased-memory-limit")


@dataclass(frozen=True)
class Memory:
    """Bytes that a build needs, and what an app gets: by default, and with the entitlement (equal on a Mac).

    verdict: "yes", "with increased-memory-limit", "no", or "unknown" where nobody published a limit. basis: where the
    limit comes from.
    """

    weights: int
    state: int
    maps: int
    limit: int | None
    increased: int | None
    verdict: str
    basis: str

    @property
    def need(self) -> int:
        """All of it."""
        return self.weights + self.state + self.maps

    @property
    def leaves_room(self) -> bool:
        """Whether the app itself has room beside it, as far as limits are known."""
        return self.increased is None or self.need <= ROOM * self.increased

    @property
    def fits(self) -> bool:
        """Whether it runs beside an app, as far as limits are known."""
        return self.verdict in (*FITS, "unknown") and self.leaves_room

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "need": self.need, "leaves_room": self.leaves_room}


def memory_of(device: Device, weights: int, state: int, maps: int) -> Memory:
    """Returns the need beside what `device` gives an app."""
    need = weights + state + maps
    if device.kind == "mac":
        held = round(MAC_SHARE * min(device.memory_gb) * 1e9)
        basis = f"two thirds of the {min(device.memory_gb)} GB that the smallest has"
        return Memory(weights, state, maps, held, held, "yes" if need <= held else "no", basis)
    stand_in = class_of(device)
    if stand_in is None or stand_in.app_memory is None:
        return Memory(weights, state, maps, None, None, "unknown", f"nobody published what {device.name} gives an app")
    app = stand_in.app_memory
    limit, increased = (round(figure.value * 1e9) for figure in (app.default, app.increased))
    return Memory(weights, state, maps, limit, increased, verdict(need, app), _basis(device, stand_in))


def _basis(device: Device, stand_in: Device) -> str:
    """Where a limit comes from; of the smallest phones also what is reported of them."""
    report = f"; {REPORTED}" if min(device.memory_gb) <= CROWDED else ""
    if device is stand_in:
        assert device.app_memory is not None
        return f"measured on {device.name}: {device.app_memory.default.source}{report}"
    more = "at least " if min(device.memory_gb) > stand_in.memory_gb[0] else ""
    what = f"{more}what {stand_in.name} with {stand_in.memory_gb[0]} GB was measured to give"
    return f"unknown for {device.name}; {what}{report}"


def maps_of(vision: VisionConfig, side: int) -> int:
    """Returns the bytes of the maps of a picture."""
    return map_bytes(vision.widths[0], side)
