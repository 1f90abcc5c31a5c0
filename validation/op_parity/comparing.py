"""The second rung: every op of every function of a build, in pieces, against the reference on the same numbers.

Whatever the rest of a network does, a piece shows its own fault alone. Nothing is left out unsaid: an op that no piece
holds is counted, and so is a piece of the reference that a program lacks; both must be none.
It judges by the table (`validation.limits`) and knows neither pictures nor prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fastvlm.progress import SILENT, Progress
from validation.counterparts.decoder import DecoderPart
from validation.limits import Measurement, worst
from validation.mil.package import open_folder
from validation.op_parity.decoder import decoder_pieces
from validation.op_parity.encoder import EncoderPieces
from validation.op_parity.piece import Piece
from validation.op_parity.running import OpFinding, compare_piece
from validation.pair import Pair
from validation.program import Function, Op
from validation.program.anchors import Anchors
from validation.program.cutting import Cutter

NOWHERE = "no piece of the reference holds it"


def compare_ops(pair: Pair, progress: Progress = SILENT) -> tuple[Measurement, ...]:
    """Returns the worst piece for each row of the table that this build has; the reference may stream its decoder.

    What a program lacks of the reference is counted, never raised. BuildError where no export wrote the manifest,
    PackageError where a package cannot be opened.
    """
    functions = _functions(pair)
    with progress.stage("Comparing every op", sum(len(each.ops) for each in functions.values())) as advance:
        compared = _Compared()
        for package, function, piece in _pieces(pair, None):
            advance(compared.add(piece, package, function))
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for finding in compared.findings:
        if not finding.problem:
            rows[f"op.{finding.metric}"][finding.place] = finding.snr_db
    measured = {key: worst(key, values, pair.limits) for key, values in rows.items()}
    lacking = [finding.place for finding in compared.findings if finding.problem]
    uncovered = [finding.place for finding in compared.uncovered(functions)]
    for key, found in (("op.unmatched", lacking), ("op.uncovered", uncovered)):
        measured[key] = Measurement(pair.limits[key], len(found), _listed(found))
    return tuple(measured[key] for key in pair.limits if key in measured)


def op_findings(pair: Pair, block: str | None = None) -> list[OpFinding]:
    """Returns every piece that misses its limit, or that a program lacks, in the order of the programs.

    block: as counterparts name it (`vision_encoder.network.2.0`, `decoder.layers.5`). None: all of them, and the ops
    that no piece holds of functions that lack none.
    """
    compared, functions = _Compared(), _functions(pair)
    for package, function, piece in _pieces(pair, block):
        compared.add(piece, package, function)
    missed = [
        finding
        for finding in compared.findings
        if finding.problem or not pair.limits[f"op.{finding.metric}"].holds(finding.snr_db)
    ]
    order = list(functions)
    missed.sort(key=lambda finding: order.index((finding.package, finding.function)))
    lacking = {(finding.package, finding.function) for finding in missed if finding.problem}
    whole = {key: function for key, function in functions.items() if key not in lacking}
    return missed if block else [*missed, *compared.uncovered(whole)]


class _Compared:
    """What was compared so far: the findings, and the ops that took part, by package and function."""

    def __init__(self) -> None:
        self.findings: list[OpFinding] = []
        self.places: dict[tuple[str, str], set[int]] = defaultdict(set)

    def add(self, piece: Piece, package: str, cutter: Cutter) -> int:
        """Compares a piece; returns how many ops took part for the first time."""
        finding, places = compare_piece(piece, cutter, package)
        self.findings.append(finding)
        known = self.places[package, cutter.name]
        fresh = len(places - known)
        known |= places
        return fresh

    def uncovered(self, functions: dict[tuple[str, str], Function]) -> list[OpFinding]:
        """The ops of the functions that took no part in anything, idle ones excepted."""
        return [
            OpFinding(*key, "", op.title, op.name, problem=NOWHERE)
            for key, function in functions.items()
            for op in function.ops
            if op.top_place not in self.places[key] and not _idle(op, function)
        ]


def _pieces(pair: Pair, block: str | None) -> Iterator[tuple[str, Cutter, Piece]]:
    """Every piece of a build, or of one block, with its package and its function; each to be compared at once."""
    encoder = pair.build.encoder
    if encoder is not None:
        opened = open_folder(encoder)
        for function in pair.program(encoder).functions:
            cutter = Cutter(opened, function.name)
            for piece in EncoderPieces(pair.model, pair.encoder_graph, pair.form, Anchors(function)):
                if block in (None, piece.block):
                    yield encoder.name, cutter, piece
    for package, part in pair.parts():
        yield from _language_pieces(pair, package, part, block)


def _language_pieces(
    pair: Pair, package: Path, part: DecoderPart, block: str | None
) -> Iterator[tuple[str, Cutter, Piece]]:
    opened, functions = open_folder(package), pair.program(package).functions
    cutters = {function.name: Cutter(opened, function.name) for function in functions}
    for name, piece in decoder_pieces(part, {function.name: Anchors(function) for function in functions}, block):
        yield package.name, cutters[name], piece


def _functions(pair: Pair) -> dict[tuple[str, str], Function]:
    """Every function of a build, by its package's name and its own."""
    packages = [*filter(None, [pair.build.encoder]), *(stage.package for stage in pair.build.language)]
    return {(path.name, each.name): each for path in packages for each in pair.program(path).functions}


def _idle(op: Op, function: Function) -> bool:
    """Whether an op has no effect: coremltools gives an input that nothing uses an identity that nothing reads."""
    read = any(value.name in function.readers or function.returns(value) for value in op.outputs)
    return op.type == "identity" and not read


def _listed(places: list[str]) -> str:
    """The first of some places, for a measurement's subject."""
    shown = "; ".join(places[:3])
    return f"{shown}; …" if len(places) > 3 else shown or "every op"
