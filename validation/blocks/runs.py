"""Whole runs of both sides for one sample, with what happens inside them: the encoder's, and the decoder's.

The reference takes all rows of a prompt at once; the packages take them in the calls that a host makes, `prefill` and,
for the last rows, `decode`. One package is open at a time, since each has its own state: a model larger than the memory
runs too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastvlm.build import HIDDEN
from fastvlm_ref.image import pixels_to_tensor
from validation.backends import open_package
from validation.blocks.points import Point, PointRow, gathered, watched
from validation.counterparts.encoder import encoder_blocks, encoder_counterparts
from validation.host import EMBEDS, Chunk, LanguageInputs, plan_prefill
from validation.pair import Pair
from validation.program.anchors import Anchors, Unmatched
from validation.rounding import RoundEachOp

Rows = NDArray[np.float32]
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
        self.package, self.function = pair.build.encoder, f"encode_{pixels.shape[0]}"

    def blocks(self) -> list[Points]:
        """The results of all blocks."""
        found = Points(self.package, self.function)
        blocks = encoder_blocks(self.pair.model, self.pair.encoder_graph, self._anchors())
        _gather(found, (Point.of_block(block, self.function) for block in blocks))
        return [found]

    def ops(self, block: str) -> list[Points]:
        """The results of the convolutions of one block."""
        found, anchors = Points(self.package, self.function), self._anchors()
        for one in encoder_counterparts(self.pair.model, self.pair.encoder_graph):
            if one.block == block:
                _gather(found, (Point.of_op(each, self.function, anchors) for each in (one,)))
        return [found]

    def reference(self) -> None:
        """Runs the reference."""
        self.pair.model.encode_image(pixels_to_tensor(self.pixels))

    def seen(self, _: Point, value: Tensor) -> Tensor:
        """All of a value."""
        return value

    def package_values(self, wanted: list[Points], precision: str) -> Iterator[tuple[Points, dict[str, Tensor], Chunk]]:
        """Gives what the program computes of the wanted values."""
        (points,) = wanted
        model = open_package(self.package, self.function, "mil", precision)
        whole = Chunk(self.function, 0, 0, 0)
        yield points, _predicted(model, {"image": Image.fromarray(self.pixels)}, None, points)[0], whole

    def _anchors(self) -> Anchors:
        return Anchors(self.pair.function(self.package, self.function))


class DecoderRun:
    """Embeddings (S, H) of one prompt with its picture through all layers."""

    def __init__(self, pair: Pair, rows: Rows) -> None:
        self.pair, self.rows = pair, rows

    def blocks(self) -> list[Points]:
        """The results of all layers, in `prefill` and in `decode`."""
        return [
            _gather(Points(package, function), (Point.of_block(b, function) for b in part.blocks(function, anchors)))
            for package, part, function, anchors in self._functions()
        ]

    def ops(self, block: str) -> list[Points]:
        """The results of the linear layers of one layer."""
        made = []
        for package, part, function, anchors in self._functions():
            points = Points(package, function)
            for one in part.counterparts(function):
                if one.block == block:
                    _gather(points, (Point.of_op(each, function, anchors) for each in (one,)))
            made.append(points)
        return made

    def _functions(self) -> Iterator[tuple[Path, Any, str, Anchors]]:
        for package, part in self.pair.parts():
            for function in ("prefill", "decode") if part.layers else ("decode",):
                yield package, part, function, Anchors(self.pair.function(package, function))

    def reference(self) -> None:
        """Runs the reference, all rows at once."""
        decoder = self.pair.model.decoder
        decoder.head(decoder(torch.from_numpy(self.rows)[None])[:, -DECODED:])

    def seen(self, point: Point, value: Tensor) -> Tensor:
        """Those rows of a value that the point's function computes: the last few of the prompt are decoded."""
        axis, decoded = self.axis, min(DECODED, len(self.rows))
        first = value.shape[axis] - decoded
        return value.narrow(axis, first, decoded) if point.where == "decode" else value.narrow(axis, 0, first)

    @property
    def axis(self) -> int:
        """On which axis a value has the rows of a prompt: the last for "ane", the middle one for "gpu"."""
        return 3 if self.pair.build.target == "ane" else 1

    def package_values(self, wanted: list[Points], precision: str) -> Iterator[tuple[Points, dict[str, Tensor], Chunk]]:
        """Gives, call by call, what the programs compute of the wanted values; rows beyond the real ones cut off."""
        by_place = {(points.package, points.function): points for points in wanted}
        calls = list(self._calls())
        handed = [self.rows[call.start : call.start + call.rows] for call in calls]
        for stage in self.pair.build.language:
            opened: dict[str, Any] = {}
            state: Any = None
            for index, call in enumerate(calls):
                if not stage.state and call.function == "prefill":
                    continue
                name = call.function
                if name not in opened:
                    beside = next(iter(opened.values()), None)
                    opened[name] = open_package(stage.package, name, "mil", precision, beside)
                state = opened[name].make_state() if stage.state and state is None else state
                points = by_place[stage.package, name]
                inputs = self._inputs(call, handed[index], stage.state)
                values, outputs = _predicted(opened[name], inputs, state, points)
                if HIDDEN in outputs:
                    handed[index] = np.asarray(outputs[HIDDEN], np.float32)[0, : call.rows]
                yield points, values, call

    def _calls(self) -> Iterator[Chunk]:
        build, filled = self.pair.build, max(0, len(self.rows) - DECODED)
        yield from plan_prefill(filled, past=0, query=build.query, context=build.context)
        for row in range(filled, len(self.rows)):
            yield Chunk("decode", row, 1, row)

    def _inputs(self, call: Chunk, rows: Rows, state: bool) -> dict[str, Any]:
        build = self.pair.build
        query = build.query if call.function == "prefill" else 1
        made = LanguageInputs(build.head_dim, build.rope_theta, build.context).inputs(rows, call.position, query)
        return made if state else {EMBEDS: made[EMBEDS]}


Run = EncoderRun | DecoderRun


def measure(run: Run, wanted: list[Points], precision: str = "fp16") -> list[PointRow]:
    """Runs both sides and returns every point's distances, in the order of the points."""
    expected = _expected(run, [point for each in wanted for point in each.points])
    rows = {point: PointRow(point) for point in expected}
    _yardstick(run, list(expected), expected, rows)
    for each, values, call in run.package_values(wanted, precision):
        for point in each.points:
            if point not in expected:  # the reference passes its module by
                continue
            pair = expected[point], values[point.value]
            if isinstance(run, DecoderRun):
                pair = _of_call(run, *pair, call)
            rows[point].own.add(*pair, call.start)
    return list(rows.values())


def _expected(run: Run, points: list[Point]) -> dict[Point, Tensor]:
    results: dict[str, Tensor] = {}
    with torch.no_grad(), watched(run.pair.model, (point.module for point in points), results.__setitem__):
        run.reference()
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
        run.reference()


def _of_call(run: DecoderRun, whole: Tensor, found: Tensor, call: Chunk) -> tuple[Tensor, Tensor]:
    """The rows of one call, of both sides' values; the reference's head gives the last rows alone."""
    start = call.start - (len(run.rows) - whole.shape[run.axis])
    return whole.narrow(run.axis, start, call.rows), found.narrow(run.axis, 0, call.rows)


def _predicted(model: Any, inputs: dict[str, Any], state: Any, points: Points) -> tuple[dict[str, Tensor], Any]:
    """Runs a function; returns copies of the wanted values, float32, and the outputs."""
    wanted, values = {point.value for point in points.points}, {}

    def keep(name: str, _: str, value: Any) -> None:
        if name in wanted:
            values[name] = value.detach().float().clone()

    return values, model.predict(inputs, state, hook=keep)


def _gather(into: Points, points: Iterator[Point]) -> Points:
    try:
        into.points.extend(points)
    except Unmatched as problem:
        into.missing.append(str(problem))
    return into
