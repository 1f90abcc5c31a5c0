"""One package as several, cut between layers: for a program whose weights do not fit into memory at once.

A piece is a program of its own over the same weight file: a run of ops with the constants that they read. What they
take from earlier pieces becomes inputs, what later ones take becomes outputs. Where to cut is read from the ops alone
(`validation.layerwise.bounds`); no names of layers are known here, and nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from export.chunks import even_runs
from fastvlm.errors import PackageError
from validation.layerwise.bounds import Steps
from validation.mil.package import Package
from validation.mil.schema import model_message


def cut(package: Package, largest: int) -> Iterator[Package]:
    """Gives the package in pieces of at most `largest` bytes of fp16 weights, or of one layer where that is more.

    A package that is no larger is given as it is. Raises PackageError for a program with control flow, or whose
    functions do not write their state alike.
    """
    functions = {name: Steps(message, name) for name, message in package.program.functions.items()}
    if max(sum(steps.bytes) for steps in functions.values()) <= largest:
        yield package
        return
    bounds = {name: steps.bounds() for name, steps in functions.items()}
    counts = {name: len(found) - 1 for name, found in bounds.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise PackageError(
            f"the package takes more than {largest:,} bytes and cannot be opened in parts: its functions write the "
            f"state differently often ({told}); validate it where it fits into half of the memory"
        )
    sizes = [
        max(sum(functions[name].bytes[slice(*spans[index])]) for name, spans in _spans(bounds).items())
        for index in range(next(iter(counts.values())))
    ]
    runs = even_runs(sizes, max(largest, *sizes))
    for first, last in runs:
        own = {name: (found[first], found[last]) for name, found in bounds.items()}
        yield package if len(runs) == 1 else _piece(package, functions, own)


def _spans(bounds: Mapping[str, list[int]]) -> dict[str, list[tuple[int, int]]]:
    return {name: list(pairwise(found)) for name, found in bounds.items()}


def _piece(package: Package, functions: Mapping[str, Steps], spans: Mapping[str, tuple[int, int]]) -> Package:
    """The steps of one span of every function, as a package of its own."""
    spec = model_message()
    spec.specificationVersion = package.spec.specificationVersion
    spec.description.defaultFunctionName = package.spec.description.defaultFunctionName
    spec.mlProgram.version = package.program.version
    whole = {item.name: item for item in package.spec.description.functions}
    for name, steps in functions.items():
        message = steps.piece(*spans[name])
        spec.mlProgram.functions[name].CopyFrom(message)
        _describe(spec.description.functions.add(name=name), whole[name], message, steps)
    return package.with_program(spec)


def _describe(description: Any, whole: Any, message: Any, steps: Steps) -> None:
    """Says of each input and output what the whole package says, and of what is handed over that it is an array."""
    known = {item.name: item for item in (*whole.input, *whole.output)}
    (block,) = message.block_specializations.values()
    named = [(description.input, item.name) for item in message.inputs if item.name not in steps.states]
    for place, name in (*named, *((description.output, name) for name in block.outputs)):
        feature = place.add(name=name)
        if name in known:
            feature.CopyFrom(known[name])
        else:
            feature.type.multiArrayType.SetInParent()
