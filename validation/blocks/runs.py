"""Whole runs of both sides for one sample, with what happens inside them: the encoder's, and the decoder's.

The reference takes all rows of a prompt at once; the packages take them in the calls that a host makes, `prefill` and,
for the last rows, `decode`. One package is open at a time, since each has its own state: a model larger than the memory
runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastvlm_ref.image import pixels_to_tensor
from validation.blocks.points import Point, PointRow, gathered, watched
from validation.counterparts.decoder import DecoderPart
from validation.counterparts.encoder import encoder_blocks, encoder_counterparts
from validation.host import Chunk
from validation.layerwise.packages import Known, Place, logits_of_all
from validation.mil import MILModel
from validation.pair import Pair
from validation.program.anchors import Anchors, Unmatched
from validation.rounding import RoundEachOp

Rows = NDArray[np.float32]
HEAD = "decoder.lm_head"
See = Callable[[Point, Tensor, Chunk], None]  # a point, the program's value there, the call
DECODED = 4  # rows of a prompt that are decoded one by one, behind those that are prefilled


@dataclass
class Points:
    """What one function is compared at; missing: what its program lacks."""

    package: Path
    function: str
    points: list[Point] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class EncoderRun:
    """One picture, RGB bytes (N, N, 3), through the encoder at its size."""

    def __init__(self, pair: Pair, pixels: NDArray[np.uint8]) -> None:
        assert pair.build.encoder is not None
        self.pair, self.pixels = pair, pixels
        self.package, self.function = pair.build.encoder, pair.form.function(pixels.shape[0])

    def blocks(self) -> list[Points]:
        """The results of all blocks."""
        found = Points(self.package, self.function)
        blocks = encoder_blocks(self.pair.model, self.pair.encoder_graph, self._anchors())
        _gather(found, (Point.of_block(block, self.package, self.function) for block in blocks))
        return [found]

    def ops(self, block: str) -> list[Points]:
        """The results of the convolutions of one block."""
        found, anchors = Points(self.package, self.function), self._anchors()
        for one in encoder_counterparts(self.pair.model, self.pair.encoder_graph):
            if one.block == block:
                _gather(found, (Point.of_op(each, self.package, self.function, anchors) for each in (one,)))
        return [found]

    def reference(self, _: Collection[str]) -> None:
        """Runs the reference."""
        self.pair.form.tokens(self.pair.model, pixels_to_tensor(self.pixels))

    def seen(self, _: Point, value: Tensor) -> Tensor:
        """All of a value."""
        return value

    def program(self, points: Iterable[Point], precision: str, see: See) -> None:
        """Runs the function, and shows what it computes at the points."""
        model = MILModel(self.package, self.function, precision)
        known = _by_value(points)
        whole = Chunk(self.function, 0, 0, 0)

        def look(name: str, _: str, value: Any) -> None:
            for point in known.get((self.function, name), ()):
                see(point, value, whole)

        model.predict(self.pair.form.inputs(self.pixels), hook=look)

    def _anchors(self) -> Anchors:
        return Anchors(self.pair.function(self.package, self.function))


class DecoderRun:
    """Embeddings (S, H) of one prompt with its picture through all layers."""

    def __init__(self, pair: Pair, rows: Rows) -> None:
        self.pair, self.rows = pair, rows

    def blocks(self) -> list[Points]:
        """The results of all layers, in `prefill` and in `decode`."""
        return [
            _gather(Points(package, function), _blocks(part, package, function, anchors))
            for package, part, function, anchors in self._functions()
        ]

    def ops(self, block: str) -> list[Points]:
        """The results of the linear layers of one layer."""
        made = []
        for package, part, function, anchors in self._functions():
            points = Points(package, function)
            for one in part.counterparts(function):
                if one.block == block:
                    _gather(points, (Point.of_op(each, package, function, anchors) for each in (one,)))
            made.append(points)
        return made

    def _functions(self) -> Iterator[tuple[Path, Any, str, Anchors]]:
        for package, part in self.pair.parts():
            for function in ("prefill", "decode") if part.layers else ("decode",):
                yield package, part, function, Anchors(self.pair.function(package, function))

    def reference(self, modules: Collection[str]) -> None:
        """Runs the reference, all rows at once; the head only where it is wanted, and for the last rows."""
        decoder = self.pair.model.decoder
        hidden = decoder(torch.from_numpy(self.rows)[None])
        if HEAD in modules:
            decoder.head(hidden[:, -DECODED:])

    def seen(self, point: Point, value: Tensor) -> Tensor:
        """Those rows of a value that the point's function computes: the last few of the prompt are decoded."""
        axis, decoded = self.axis, min(DECODED, len(self.rows))
        first = value.shape[axis] - decoded
        return value.narrow(axis, first, decoded) if point.where == "decode" else value.narrow(axis, 0, first)

    @property
    def axis(self) -> int:
        """On which axis a value has the rows of a prompt: the last for "ane", the middle one for "gpu"."""
        return 3 if self.pair.build.target == "ane" else 1

    def program(self, points: Iterable[Point], precision: str, see: See) -> None:
        """Makes a host's calls of every package, and shows what they compute at the points."""
        known = _by_value(points)

        def look(place: Place, name: str, _: str, value: Any) -> None:
            for point in known.get((place.chunk.function, name), ()):
                if point.package == place.package:
                    see(point, value, place.chunk)

        item = Known(self.rows, max(0, len(self.rows) - DECODED))
        logits_of_all(self.pair.build, [item], precision=precision, seen=look)


Run = EncoderRun | DecoderRun


def measure(run: Run, wanted: list[Points], precision: str = "fp16") -> list[PointRow]:
    """Runs both sides and returns every point's distances, in the order of the points."""
    expected = _expected(run, [point for each in wanted for point in each.points])
    rows = {point: PointRow(point) for point in expected}
    _yardstick(run, list(expected), expected, rows)

    def see(point: Point, value: Tensor, call: Chunk) -> None:
        if point in expected:  # else the reference passes its module by
            pair = expected[point], value.detach().float()
            rows[point].own.add(*(_of_call(run, *pair, call) if isinstance(run, DecoderRun) else pair), call.start)

    run.program(expected, precision, see)
    return list(rows.values())


def _expected(run: Run, points: list[Point]) -> dict[Point, Tensor]:
    results: dict[str, Tensor] = {}
    modules = {point.module for point in points}
    with torch.no_grad(), watched(run.pair.model, modules, results.__setitem__):
        run.reference(modules)
    return gathered(points, results)


def _yardstick(run: Run, points: list[Point], expected: dict[Point, Tensor], rows: dict[Point, PointRow]) -> None:
    """What rounding every op of the reference to fp16 costs at each point."""
    by_module: dict[str, list[Point]] = {}
    for point in points:
        by_module.setdefault(point.module, []).append(point)

    def see(module: str, result: Tensor) -> None:
        for point in by_module[module]:
            found = point.result(result).float()
            rows[point].yardstick.add(run.seen(point, expected[point]), run.seen(point, found))

    with torch.no_grad(), watched(run.pair.model, by_module, see), RoundEachOp():  # type: ignore[no-untyped-call]
        run.reference(by_module.keys())


def _of_call(run: DecoderRun, whole: Tensor, found: Tensor, call: Chunk) -> tuple[Tensor, Tensor]:
    """The rows of one call, of both sides' values; the reference's head gives the last rows alone."""
    start = call.start - (len(run.rows) - whole.shape[run.axis])
    return whole.narrow(run.axis, start, call.rows), found.narrow(run.axis, 0, call.rows)


def _by_value(points: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points by function and value."""
    known: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        known.setdefault((point.where, point.value), []).append(point)
    return known


def _blocks(part: DecoderPart, package: Path, function: str, anchors: Anchors) -> Iterator[Point]:
    return (Point.of_block(block, package, function) for block in part.blocks(function, anchors))


def _gather(into: Points, points: Iterator[Point]) -> Points:
    try:
        into.points.extend(points)
    except Unmatched as problem:
        into.missing.append(str(problem))
    return into
