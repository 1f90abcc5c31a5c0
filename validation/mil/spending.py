"""What each step of a plan spends of a call's work, decided once, so that running it costs next to nothing.

A value pays for the ops of its block that read it when it is made, and the first step of a block for what all of them
cost whatever they take: then running a step looks at its result alone. Only values that come from outside (a function's
inputs, what a loop's block takes from around it) and the results of ops that give several are looked at by their
readers. It does not know what anything costs: `work` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from validation.mil.execution import Step
from validation.mil.registry import Op
from validation.mil.values import TensorType
from validation.mil.work import ARGUMENT, PARTLY, STEP, price


def set_spending(
    step: Step, op: Op, sources: Sequence[int | tuple[int, ...]], constants: Iterable[Any], computed: Sequence[int]
) -> None:
    """Set what the step spends, as if nothing were spent ahead.

    sources: slots of all that it takes. constants: types of the constants among them. computed: slots of the rest.
    """
    each = price(op)
    count = sum(len(source) if isinstance(source, tuple) else 1 for source in sources) + len(step.results)
    step.begins = STEP + ARGUMENT * count
    if op.name not in PARTLY and each:
        step.fixed = each * sum(map(_values, constants))
        step.price, step.reads = each, tuple(computed)
    step.makes = 0 if op.name == "classify" else each  # which gives a word and a dictionary


def spend_ahead(steps: Sequence[Step]) -> None:
    """Let the steps of a block pay for the readers of what they make, and the first for all that does not depend on it.

    A block runs all its steps: what begins and what is constant is known before the first.
    """
    whole = sum(step.begins + step.fixed for step in steps)
    for index, step in enumerate(steps):
        step.fixed = 0 if index else whole
    makers: dict[int, Step] = {}
    for step in steps:
        for slot in step.reads:
            if slot in makers:
                makers[slot].makes += step.price
        step.reads = tuple(slot for slot in step.reads if slot not in makers)
        step.asks = bool(step.fixed or step.reads)
        if not step.many:
            makers[step.results[0]] = step


def _values(kind: Any) -> int:
    """How many a constant of that type holds."""
    return prod(length or 1 for length in kind.shape) if isinstance(kind, TensorType) else 1
