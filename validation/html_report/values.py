"""What happened inside the packages, block by block: how far each is from the reference, and its largest value.

An op belongs to the first block that ends at or behind it in the order of the program. Sums with the causal mask are
left out of the largest values: they hold its −10,000, and every layer would look alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from validation.blocks import BlockComparison
from validation.blocks.points import PointRow
from validation.comparison import Comparison
from validation.limits import storable
from validation.mil.registry import only_moves
from validation.pair import Pair
from validation.peaks import Where
from validation.program import Function

CEILING = 65504.0  # largest number of fp16
LARGEST = 8  # ops that are listed by name
MASK = "causalMask"
BEHIND = {"decode": "head", "prefill": "keys and values of the last layer"}  # what is computed behind the last block


def block_runs(blocks: BlockComparison, pair: Pair) -> list[dict[str, Any]]:
    """Returns a run for each function: its blocks in the order of the network, with SNR in dB."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in blocks.runs:
        for row in run.rows:
            runs.setdefault((run.part, row.point.where), []).append(
                {
                    "block": row.point.name,
                    "snr_db": storable(row.own.snr_db),
                    "rounded_snr_db": storable(row.yardstick.snr_db),
                    "loss_db": storable(row.snr_loss_db),
                }
            )
    return [
        {
            "part": part,
            "function": function,
            "limit_db": pair.limits[f"{part}_blocks.snr_loss_db"].limit,
            "blocks": rows,
        }
        for (part, function), rows in runs.items()
    ]


@dataclass(frozen=True)
class _Op:
    """One op's largest value."""

    part: str
    where: Where
    block: str
    op: str
    name: str
    peak: float

    def as_json(self) -> dict[str, Any]:
        package, function = self.where
        row = {"part": self.part, "package": package.name, "function": function, "block": self.block}
        return {**row, "op": self.op, "name": self.name, "peak": storable(self.peak)}


def ranges(comparison: Comparison, blocks: BlockComparison) -> dict[str, Any] | None:
    """Returns the largest value of every block, by function, and the ops with the largest; None where none was seen."""
    if comparison.peaks is None:
        return None
    ends = _ends(blocks)
    ops = [
        op for where in _in_order(comparison) if where in comparison.peaks.ops
        for op in _ops(comparison, where, ends.get(where, ()))
    ]  # fmt: skip
    runs: dict[tuple[str, str], dict[str, _Op]] = {}
    for op in ops:
        of_run = runs.setdefault((op.part, op.where[1]), {})
        if op.block not in of_run or op.peak > of_run[op.block].peak:
            of_run[op.block] = op
    largest = sorted(ops, key=lambda op: -op.peak)[:LARGEST]
    return {
        "ceiling": CEILING,
        "limit": comparison.pair.limits["encoder.peak"].limit,
        "runs": [
            {"part": part, "function": function, "blocks": [op.as_json() for op in rows.values()]}
            for (part, function), rows in runs.items()
        ],
        "largest": [op.as_json() for op in largest],
    }


def _ends(blocks: BlockComparison) -> dict[Where, list[PointRow]]:
    """The blocks of every function, in the order of the network; each ends where its result is computed."""
    found: dict[Where, list[PointRow]] = {}
    for run in blocks.runs:
        for row in run.rows:
            found.setdefault((row.point.package, row.point.where), []).append(row)
    return found


def _in_order(comparison: Comparison) -> Iterator[Where]:
    """Every function of the build, in the order in which an answer needs them."""
    build = comparison.pair.build
    if build.encoder is not None:
        yield from ((build.encoder, comparison.pair.form.function(size)) for size in build.image_sizes)
    yield from ((stage.package, name) for name in ("prefill", "decode") for stage in build.language)


def _ops(comparison: Comparison, where: Where, ends: Sequence[PointRow]) -> Iterator[_Op]:
    assert comparison.peaks is not None
    package, peaks = where[0], comparison.peaks.ops[where]
    function = comparison.pair.function(*where)
    part = "encoder" if package == comparison.pair.build.encoder else "language"
    waiting, masked = [(row.point.value, row.point.name) for row in ends], set(_masked(function))
    for op in function.ops:
        block = waiting[0][1] if waiting else BEHIND.get(where[1], "behind the last block")
        for value in op.outputs:
            if value.name in peaks and value.name not in masked:
                yield _Op(part, where, block, op.type, value.name, peaks[value.name])
        names = [value.name for value in op.outputs]
        while waiting and waiting[0][0] in names:
            waiting.pop(0)


def _masked(function: Function) -> Iterator[str]:
    """The names of sums with the causal mask."""
    carrying = {MASK}
    for op in function.ops:
        if any(value.name in carrying for value in op.values):
            names = [value.name for value in op.outputs]
            if op.type == "add":
                yield from names
            elif only_moves(op.type):
                carrying.update(names)
