"""What of a language model is open at a time: a package, or a run of its layers where a whole one takes too much.

A package takes in memory what its weights take in fp16, whatever they are stored in: compressed ones are computed, and
large ones laid out anew, when a function first runs. With Core ML that is the system's business, and packages stay
whole.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastvlm.build import Stage
from validation.backends import Predictor, open_package
from validation.layerwise.cutting import cut
from validation.mil import MILModel
from validation.mil.package import Package, open_folder

LARGEST = (
    1 << 30
)  # bytes in fp16 that are opened at a time, if layers can be parted so: a package for the Neural Engine


@dataclass(frozen=True)
class Part:
    """Functions of a package, or of a part of it, by name; `stage` is the package. cut: it is one part of several."""

    stage: Stage
    functions: Mapping[str, Predictor]
    cut: bool = False

    def taken(self, function: Predictor, given: dict[str, Any]) -> dict[str, Any]:
        """Returns what the function takes of all that there is to give."""
        if self.cut and isinstance(function, MILModel):
            return {name: given[name] for name in function.inputs}
        return given


def parts_of(
    stage: Stage, functions: Collection[str], backend: str, precision: str, target: str, largest: int = LARGEST,
    compute_units: str | None = None,
) -> Iterator[Part]:  # fmt: skip
    """Gives the parts of one package in order, each closed when the next one is asked for.

    `functions` are those that will be called; a package of the head alone has no "prefill". Raises PackageError for a
    package that is damaged, or that cannot be parted.
    """
    wanted = [name for name in sorted(functions) if name == "decode" or stage.prefill]
    if backend != "mil":
        opened = {
            name: open_package(stage.package, name, backend, precision, None, target, compute_units) for name in wanted
        }
        yield Part(stage, opened)
        return
    whole = open_folder(stage.package)
    for package in cut(whole, largest):
        opened = _planned(package, wanted, precision)
        yield Part(stage, opened, cut=package is not whole)
        # whoever took the part may hold it still while the next one is opened, and a frame holds itself
        opened.clear()
        gc.collect()


def _planned(package: Package, wanted: list[str], precision: str) -> dict[str, Predictor]:
    """The functions with all constants bound: two calls that begin at once would bind them twice."""
    models = {name: MILModel(package, name, precision) for name in wanted}
    for model in models.values():
        model.plan.binder.frame()
    return dict(models)
