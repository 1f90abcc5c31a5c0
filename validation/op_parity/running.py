"""One piece, cut out of its function and run in the MIL runtime in float32, against what the reference gives.

A piece that the program lacks, or that does not run on the numbers of its shapes, is a finding without numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastvlm.errors import PackageError
from validation.mil import MILModel
from validation.op_parity.piece import SMALLEST, Case, Piece, Shape, Written
from validation.op_parity.rows import Worst, farthest, worst_row
from validation.program.anchors import Unmatched
from validation.program.cutting import Cutter


@dataclass(frozen=True)
class OpFinding:
    """A piece and its worst row.

    function, block, piece, op: where; op is the weight's constant, or the value that was worst. metric: the row of the
    table, without its quantity. case: the kind of numbers that were worst. index: of the worst number of the worst row,
    in the program's value. program, reference: the two numbers there. problem: why nothing could be compared.
    """

    package: str
    function: str
    block: str
    piece: str
    op: str
    metric: str = ""
    case: str = ""
    index: tuple[int, ...] = ()
    program: float = math.nan
    reference: float = math.nan
    snr_db: float = -math.inf
    problem: str = ""

    @property
    def place(self) -> str:
        """Where it is, in one line; with what is wrong there, if nothing could be compared."""
        named = "" if self.op in ("", self.piece) else f" ({self.op})"
        where = f"{self.package} {self.function}, {self.piece}{named}"
        return f"{where}: {self.problem}" if self.problem else where

    def __str__(self) -> str:
        if self.problem:
            return self.place
        numbers = f"{self.program:.6g} where the reference has {self.reference:.6g}"
        return f"{self.place}: {self.snr_db:.1f} dB, {numbers} at {list(self.index)} (numbers: {self.case})"


def compare_piece(piece: Piece, cutter: Cutter, package: str) -> tuple[OpFinding, frozenset[int]]:
    """Returns the worst of all cases of a piece, and the places of the ops that took part."""
    finding = OpFinding(package, cutter.name, piece.block, piece.name, piece.op)
    try:
        metric = piece.metric if isinstance(piece.metric, str) else piece.metric()
        trial = _Trial(piece, cutter)
        kind, value, worst = min(trial.results(), key=lambda result: result[2].snr_db)
    except PackageError as error:
        return replace(finding, problem=str(error)), frozenset()
    found = replace(
        finding, metric=metric, op=piece.op or value, case=kind, index=worst.index, program=worst.program,
        reference=worst.reference, snr_db=worst.snr_db,
    )  # fmt: skip
    return found, trial.places


class _Trial:
    """A piece made ready to run; PackageError where the program lacks it."""

    def __init__(self, piece: Piece, cutter: Cutter) -> None:
        begins = [spot.find() for spot in piece.begins]
        self.piece, self.begins = piece, [value.name for value in begins]
        self.ends = [spot.find().name for spot in piece.ends]
        self.model: MILModel | None = None
        self.places: frozenset[int] = frozenset()
        whole = [value.shape for value in begins]
        if piece.optional and set(self.begins) == set(self.ends):
            self.shapes = [_freed(shape, piece.free, piece.size) for shape in whole]
            return
        states = [piece.state.name] if piece.state else []
        cut = cutter.cut(
            [*dict.fromkeys(self.begins), *states], [*dict.fromkeys(self.ends), *states],
            since=piece.since() if piece.since else "", until=self.ends[-1], free=piece.free,
        )  # fmt: skip
        self.model, self.places = MILModel(cut.package, precision="fp32"), cut.places
        self.shapes = [_freed(shape, cut.free, piece.size) for shape in whole]

    def results(self) -> Iterator[tuple[str, str, Worst]]:
        """Gives the worst row of every end in every case, with the case's kind and the end's name."""
        for case in self._cases():
            found, state = self._run(case)
            for name, expected in zip(self.ends, case.expected, strict=True):
                actual = torch.as_tensor(found[name])
                if actual.shape != expected.shape:
                    raise Unmatched(f"{name} is {list(actual.shape)}, the reference gives {list(expected.shape)}")
                yield case.kind, name, worst_row(expected, actual, self.piece.rows, case.floor)
            if state is not None and case.state is not None and self.piece.state is not None:
                yield case.kind, self.piece.state.name, _state_row(case.state[1], state, self.piece.state)

    def _cases(self) -> Iterator[Case]:
        try:
            yield from self.piece.cases(self.shapes)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise Unmatched(f"the reference takes nothing of shape {self.shapes} there ({reason})") from error

    def _run(self, case: Case) -> tuple[Mapping[str, Any], Tensor | None]:
        inputs = dict(zip(self.begins, case.inputs, strict=True))
        if self.model is None:
            return inputs, None
        if self.piece.state is None or case.state is None:
            return self.model.predict_tensors(inputs), None
        state = self.model.make_state()
        box = state.boxes[self.piece.state.name]
        box.tensor = case.state[0].clone()
        return self.model.predict_tensors(inputs, state), box.tensor


def _freed(shape: Shape, axes: tuple[int, ...], size: int) -> Shape:
    return tuple(size if axis in axes else length for axis, length in enumerate(shape))


def _state_row(expected: Tensor, actual: Tensor, written: Written) -> Worst:
    """The worst vector of the piece's own rows; −inf where any other number of the state changed."""
    worst = worst_row(expected[written.rows], actual[written.rows], written.vectors, SMALLEST)
    index = (worst.index[0] + written.rows.start, *worst.index[1:])
    parts = (slice(written.rows.start), slice(written.rows.stop, None))
    if all(torch.equal(expected[part], actual[part]) for part in parts):
        return replace(worst, index=index)
    return replace(farthest(expected, actual), snr_db=-math.inf)
