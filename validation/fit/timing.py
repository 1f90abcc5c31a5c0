"""How long ops take on an engine: each the longer of its products and its bytes, and what every call costs beside.

    seconds = Σ max(FLOPs / (efficiency · peak), bytes / (efficiency · bandwidth)) + calls · (call + layers · layer)

Ops follow each other: none computes while another reads, which is a guess on the slow side. Activations count where
they do not stay on the chip.
It knows neither models nor where efficiencies come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from validation.fit.chips import Speeds
from validation.fit.work import Work

COMPUTE, BANDWIDTH, OVERHEAD = "compute", "bandwidth", "overhead"


@dataclass(frozen=True)
class Efficiency:
    """Which part of the peaks is reached."""

    compute: float
    bandwidth: float


@dataclass(frozen=True)
class Stage:
    """One stage of an answer: how often it is called, and where its seconds go.

    compute, bandwidth: seconds of the ops that wait for products, and for bytes; overhead: of the calls themselves.
    flops, bytes: of all calls; bytes are those that cross to memory.
    """

    name: str
    calls: int
    compute: float
    bandwidth: float
    overhead: float
    flops: int
    bytes: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.bandwidth + self.overhead

    @property
    def bound(self) -> str:
        """What most of the time is spent on."""
        parts = {COMPUTE: self.compute, BANDWIDTH: self.bandwidth, OVERHEAD: self.overhead}
        return max(parts, key=lambda name: parts[name])

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "seconds": self.seconds, "bound": self.bound}


def stage(
    name: str, works: Iterable[Work], speeds: Speeds, reached: Efficiency, *,
    calls: int = 1, packages: int = 1, layers: int = 0,
) -> Stage:  # fmt: skip
    """Returns a stage whose every call runs `works` in `packages` programs with `layers` decoder layers in all."""
    compute = bandwidth = 0.0
    flops = moved = 0
    for work in works:
        traffic = work.traffic(speeds.on_chip, speeds.folded)
        products = work.count * work.flops / (reached.compute * speeds.flops)
        reading = work.count * traffic / (reached.bandwidth * speeds.bandwidth)
        if products >= reading:
            compute += products
        else:
            bandwidth += reading
        flops += work.count * work.flops
        moved += work.count * traffic
    overhead = packages * speeds.call + layers * speeds.layer
    return Stage(name, calls, calls * compute, calls * bandwidth, calls * overhead, calls * flops, calls * moved)
