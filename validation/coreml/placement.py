"""Where Core ML says that it would run the ops of a function: plain data, made by `plan`, read by reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

DEVICES = ("neuralEngine", "gpu", "cpu")


@dataclass(frozen=True)
class OpPlace:
    """One op. device: of DEVICES, the preferred one, None where the plan does not tell. cost: share of the function."""

    op: str
    name: str  # of its first result
    device: str | None
    cost: float | None


@dataclass(frozen=True)
class FunctionPlan:
    """One function of one package, for one choice of compute units. Constants are no ops."""

    package: str
    function: str
    ops: tuple[OpPlace, ...]

    @property
    def told(self) -> int:
        """For how many ops the plan names a device."""
        return sum(op.device is not None for op in self.ops)

    @property
    def op_percent(self) -> dict[str, float]:
        """The share of ops on each device, of those that the plan tells of."""
        counts = Counter(op.device for op in self.ops if op.device)
        return {device: 100.0 * counts[device] / self.told for device in DEVICES} if self.told else {}

    @property
    def cost_percent(self) -> dict[str, float]:
        """The share of the estimated cost on each device, of the cost that the plan tells of."""
        costs = {device: sum(op.cost or 0.0 for op in self.ops if op.device == device) for device in DEVICES}
        total = sum(costs.values())
        return {device: 100.0 * cost / total for device, cost in costs.items()} if total else {}

    def as_json(self) -> dict[str, Any]:
        """The shares as plain data; single ops are in a device report alone."""
        return {
            "package": self.package,
            "function": self.function,
            "ops": len(self.ops),
            "told": self.told,
            "op_percent": {device: round(share, 3) for device, share in self.op_percent.items()},
            "cost_percent": {device: round(share, 3) for device, share in self.cost_percent.items()},
        }
