"""The rows of rung "blocks": the worst block of the encoder at each size, and of the decoder in both functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm.progress import SILENT, Progress
from validation.blocks.points import PointRow
from validation.blocks.runs import DecoderRun, EncoderRun, Points, Rows, Run, measure
from validation.limits import Measurement, worst
from validation.pair import Pair

UNMATCHED = "blocks.unmatched"


@dataclass(frozen=True)
class BlockRun:
    """One run and what was measured in it, in the order of the network."""

    run: Run
    rows: Sequence[PointRow]
    missing: Sequence[str]  # blocks of the reference that the program lacks

    @property
    def part(self) -> str:
        """ "encoder" or "language": whose limits hold."""
        return "encoder" if isinstance(self.run, EncoderRun) else "language"


@dataclass(frozen=True)
class BlockComparison:
    """What `compare_blocks` found."""

    runs: Sequence[BlockRun]
    measurements: Sequence[Measurement]


NOT_COMPARED = BlockComparison((), ())  # with a backend that does not show what is inside a package


def compare_blocks(
    pair: Pair, pictures: Sequence[NDArray[np.uint8]], rows: Rows | None, progress: Progress = SILENT
) -> BlockComparison:
    """Runs both sides once per picture, RGB bytes (N, N, 3) of an exported size, and once for a prompt's rows (S, H).

    `rows` None: the encoder alone.
    """
    asked: list[Run] = [EncoderRun(pair, pixels) for pixels in pictures]
    if rows is not None:
        asked.append(DecoderRun(pair, rows))
    found = []
    with progress.stage("Comparing block by block", len(asked)) as advance:
        for run in asked:
            wanted = run.blocks()
            measured = measure(run, wanted)
            found.append(BlockRun(run, measured, list(_unmatched(wanted, measured))))
            advance(1)
    return BlockComparison(found, tuple(_measurements(pair, found)))


def _unmatched(wanted: Sequence[Points], rows: Sequence[PointRow]) -> Iterator[str]:
    """What the program lacks of the reference, and blocks that the reference itself passes by."""
    compared = {row.point for row in rows}
    for each in wanted:
        yield from each.missing
        yield from (f"{point.title}: the reference never runs it" for point in each.points if point not in compared)


def _measurements(pair: Pair, runs: Sequence[BlockRun]) -> Iterator[Measurement]:
    for part in ("encoder", "language"):
        own = [each for each in runs if each.part == part]
        losses = {row.point.title: row.snr_loss_db for each in own for row in each.rows}
        if losses:
            yield worst(f"{part}_blocks.snr_loss_db", losses, pair.limits)
    missing = [name for each in runs for name in each.missing]
    if runs:
        yield worst(UNMATCHED, {missing[0] if missing else "every block": len(missing)}, pair.limits)
