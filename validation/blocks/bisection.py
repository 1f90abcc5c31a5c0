"""Where a failed comparison begins: the first block, then the first op in it, whose error leaves what fp16 costs.

The op is run once more in float32. Where that brings it back within its limit, precision is the cause (a value beyond
fp16, or sums too long for it); where it does not, the program computes something else than the reference, and the
pieces of that block are tried alone (`validation.op_parity`), which also names what stands between two weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from validation.blocks.comparing import BlockComparison, BlockRun
from validation.blocks.points import PointRow
from validation.blocks.runs import measure
from validation.limits import Limit, storable
from validation.op_parity import op_findings
from validation.pair import Pair


@dataclass(frozen=True)
class Finding:
    """One place where program and reference part.

    function: of the package. block, op: as the reference and the graph call them; op None where every weighted op of
    the block is within its limit, so that the fault lies behind the last of them. index, found, expected: where the
    values are furthest apart, in the program's layout. snr_db, yardstick_db: of the package, of the reference rounded
    per op. float32_db: of the package in float32. cured: whether float32 brings it within its limit. piece: the first
    piece of the block that computes something else on numbers of its own, in words; None where all are good alone.
    """

    function: str
    block: str
    op: str | None
    index: tuple[int, ...]
    row: int
    found: float
    expected: float
    snr_db: float
    yardstick_db: float
    float32_db: float
    cured: bool
    piece: str | None = None

    @property
    def cause(self) -> str:
        """ "precision" or "conversion"."""
        return "precision" if self.cured else "conversion"

    def __str__(self) -> str:
        place = f"op {self.op}" if self.op else "behind its last weighted op"
        alone = f"; alone, {self.piece}" if self.piece else ""
        return (
            f"{self.function}: first in {self.block}, {place}: {self.found:.6g} at {list(self.index)}, "
            f"PyTorch has {self.expected:.6g}; SNR {self.snr_db:.1f} dB where fp16 alone has {self.yardstick_db:.1f}, "
            f"{self.float32_db:.1f} dB in float32: {self.cause}{alone}"
        )

    def as_json(self) -> dict[str, Any]:
        """The finding as validation.json keeps it."""
        numbers = {name: storable(value) for name, value in asdict(self).items() if isinstance(value, float)}
        return {**asdict(self), "index": list(self.index), **numbers, "cause": self.cause}


def bisect(pair: Pair, comparison: BlockComparison) -> list[Finding]:
    """Returns the first place of each run whose blocks leave their limit; empty where none does."""
    return [
        finding for each in comparison.runs for finding in _first(each, pair.limits[f"{each.part}_blocks.snr_loss_db"])
    ]


def _first(each: BlockRun, limit: Limit) -> Iterator[Finding]:
    bad = next((row for row in each.rows if not limit.holds(row.snr_loss_db)), None)
    if bad is None:
        return
    asked = each.run.ops(bad.point.name)
    for points in asked:
        points.points = [point for point in points.points if point.where == bad.point.where]
    op = next((row for row in measure(each.run, asked) if not limit.holds(row.snr_loss_db)), None)
    yield _finding(each, bad, op, limit)


def _finding(each: BlockRun, bad: PointRow, op: PointRow | None, limit: Limit) -> Finding:
    """The finding, with one more run of the package in float32."""
    row = op or bad
    wanted = each.run.blocks() if op is None else each.run.ops(bad.point.name)
    for points in wanted:
        points.points = [point for point in points.points if _same(point, row)]
    (exact,) = measure(each.run, wanted, "fp32")
    cured = limit.holds(exact.snr_loss_db)
    alone = [] if cured else op_findings(each.run.pair, bad.point.name)
    return Finding(
        row.point.where, bad.point.name, op.point.name if op else None, row.own.index, row.own.row, row.own.found,
        row.own.expected, row.own.snr_db, row.yardstick.snr_db, exact.own.snr_db, cured,
        str(alone[0]) if alone else None,
    )  # fmt: skip


def _same(point: Any, row: PointRow) -> bool:
    return bool(point.title == row.point.title)
