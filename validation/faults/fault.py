"""One kind of fault: what is wrong, where it is planted, and which rung of the comparison has to find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from validation.faults.bench import Bench
from validation.limits import RUNGS

PLACES = ("reference", "graph", "build")
SCHEMES = ("fp16", "int8", "lut4")
Plant = Callable[[Bench], None]


@dataclass(frozen=True)
class Fault:
    """A fault: `plant` puts it into a bench.

    where: "reference" changes the model in memory, "graph" the ops of a program, "build" a weight file, the embedding
    table, the tokenizer or the manifest. rung: the lowest one whose job it is; others may find it too. scheme: how the
    weights of the build are stored that it starts from.
    """

    name: str
    where: str
    rung: str
    text: str
    plant: Plant
    scheme: str = "fp16"


def fault(shelf: list[Fault], rung: str, where: str, scheme: str = "fp16") -> Callable[[Plant], Plant]:
    """Returns a decorator that puts a function on `shelf` as a fault: its name and its docstring are the fault's."""
    assert rung in RUNGS, rung
    assert where in PLACES, where
    assert scheme in SCHEMES, scheme

    def keep(plant: Plant) -> Plant:
        shelf.append(Fault(plant.__name__.replace("_", "-"), where, rung, plant.__doc__ or "", plant, scheme))
        return plant

    return keep
