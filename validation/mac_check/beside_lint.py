"""Where Core ML's plan puts each op, beside what the linter's rules predict of it.

Only choices that allow the Neural Engine and no GPU tell: there an op that is not on the engine was refused by it. Ops
at the edge are work around the engine and are counted apart. Costs and risks no plan shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.coreml.placement import FunctionPlan
from validation.lint.checking import STAYS, Prediction, predictions

ENGINE = "neuralEngine"
TELLING = "cpuAndNeuralEngine"


@dataclass
class Beside:
    """One rule, or STAYS for ops that none speaks of: how many ops the plan puts where the rule says.

    differing: the kinds of ops that it puts elsewhere, with how many; untold: ops of which the plan says nothing.
    """

    rule: str
    agree: int = 0
    untold: int = 0
    differing: Counter[str] = field(default_factory=Counter)

    def add(self, predicted: Prediction, device: str | None) -> None:
        """Counts one op."""
        if device is None:
            self.untold += 1
        elif (device == ENGINE) == (predicted.verdict == STAYS):
            self.agree += 1
        else:
            self.differing[predicted.op] += 1

    @property
    def differ(self) -> int:
        """How many ops the plan puts elsewhere."""
        return self.differing.total()

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "rule": self.rule, "agree": self.agree, "differ": self.differ, "untold": self.untold,
            "differing": dict(sorted(self.differing.items())),
        }  # fmt: skip


def beside_lint(
    packages: Iterable[Path], plans: Sequence[FunctionPlan], device: str | None
) -> tuple[list[Beside], dict[str, int]]:
    """Returns every rule that speaks of an op beside the plans, STAYS first, and on which device the edge's ops are.

    `plans` are of TELLING; `device` is a name of `fastvlm.devices`, None for all of them. An op that breaks several
    rules is counted with each.
    """
    rows, edge = {STAYS: Beside(STAYS)}, Counter[str]()
    for package in packages:
        predicted = predictions(package, device)
        for plan in plans:
            if plan.package != package.name:
                continue
            places = {op.name: op.device for op in plan.ops}
            for each in predicted[plan.function]:
                place = places.get(each.name)
                if each.verdict == "edge":
                    edge[place or "untold"] += 1
                for rule in each.rules if each.verdict == "leaves" else (STAYS,) if each.verdict == STAYS else ():
                    rows.setdefault(rule, Beside(rule)).add(each, place)
    return list(rows.values()), dict(edge)


def engine_ops(plans: Iterable[FunctionPlan]) -> int:
    """Returns how many ops plans put on the Neural Engine. None at all: it does not answer there, as on a virtual
    machine, and where ops are says nothing of any rule.
    """
    return sum(op.device == ENGINE for plan in plans for op in plan.ops)
