"""A sweep from its spec to the table: what is planned, what is missing, who does it, what became of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastvlm.errors import FastVLMError, UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import check_apart
from fastvlm_ref.checkpoint.opening import folder_of
from validation.sweep.builds import tidy
from validation.sweep.cases import Case, Making, planned
from validation.sweep.cluster import Cluster
from validation.sweep.plot import write_plot
from validation.sweep.processes import Done, Processes
from validation.sweep.rows import ERROR, Row, check_place, held, measured, read_row, write_error
from validation.sweep.spec import read_spec
from validation.sweep.table import check_parquet, document, tabled, write_tables
from validation.sweep.working import error_row, labels


class Workers(AbstractContextManager[Any], Protocol):
    """Who does the work, within a `with` block."""

    def run(self, place: Path, sweep: str, makings: Sequence[Making], keep: bool) -> Iterator[Done]:
        """Yields each build when it is done with, in whatever order, with what went wrong where no row is written."""


@dataclass(frozen=True)
class Swept:
    """What came of a sweep: table.json's content, and the files that were written.

    taken: how many of them an earlier run had measured.
    """

    document: dict[str, Any]
    files: tuple[Path, ...]
    taken: int

    @property
    def rows(self) -> list[Row]:
        """The flat rows."""
        return list(self.document["rows"])

    @property
    def lacking(self) -> int:
        """How many cases have no result."""
        return sum(row["status"] == ERROR for row in self.rows)


def sweep(
    spec: str | Path, output: str | Path, *, workers: int = 1, ray: str | None = None, parquet: bool = False,
    progress: Progress = SILENT,
) -> Swept:  # fmt: skip
    """Validates every case of a spec's file and writes rows, table and plot into the folder `output`.

    workers: processes of this machine; ray: a cluster's address, in place of them; parquet: whether the table is
    written as Parquet as well. A folder of an earlier run is gone on with: cases that it measured are not measured
    again. Raises UsageError, with everything that is wrong in the spec, MissingDependency for Ray or pyarrow, and
    OutputError, all before any work starts; OutputError also where rows cannot be written.
    """
    if workers < 1:
        raise UsageError(f"--workers is {workers}; at least one is needed")
    if parquet:
        check_parquet()
    who: Workers = Processes(workers) if ray is None else Cluster(ray)
    read = read_spec(spec)
    place = Path(os.path.expanduser(output)).resolve()
    check_place(place)
    with progress.stage("Checking the spec"):
        makings = planned(read, progress)
    check_apart(place, [folder_of(making.checkpoint_at) for making in makings], replaced=False)
    with ExitStack() as stack:
        with who:
            name = stack.enter_context(held(place))
            with _kept(place, makings):
                taken = _do(who, place, name, makings, read.keep_builds, progress)
        with progress.stage("Writing table and plot"):
            rows = tabled([_row(place, making, case) for making in makings for case in making.cases], read.device)
            content = document(read, rows)
            files = write_tables(place, content, parquet)
            plot = write_plot(place, rows, read.device)
    return Swept(content, (*files, *([plot] if plot else [])), taken)


@contextmanager
def _kept(place: Path, makings: Sequence[Making]) -> Iterator[None]:
    """Says with an interrupt what is done and how one goes on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        cases = [case.id for making in makings for case in making.cases]
        end.add_note(
            f"{len(measured(place, cases))} of {len(cases)} cases are measured; the same command goes on with the rest"
        )
        raise


def _do(
    who: Workers, place: Path, name: str, makings: Sequence[Making], keep: bool, progress: Progress
) -> int:  # fmt: skip
    """Has everything done that is missing; returns how many cases were there."""
    cases = [case.id for making in makings for case in making.cases]
    done = measured(place, cases)
    missing = [making for making in makings if any(case.id not in done for case in making.cases)]
    if done:
        progress.note(f"{len(done)} of {len(cases)} cases were measured by an earlier run")
    with progress.stage("Validating builds", len(missing)) as advance:
        for making, problem in who.run(place, name, missing, keep):
            if problem is not None:
                _give_up(place, making, problem)
            _tell(place, making, done, progress)
            advance(1)
    tidy(place, [] if keep else [making.folder for making in missing])
    return len(done)


def _give_up(place: Path, making: Making, problem: FastVLMError) -> None:
    """Rows for the cases of a build that nobody came through with."""
    for case in making.cases:
        write_error(place, error_row(making, case, problem))


def _tell(place: Path, making: Making, before: Collection[str], progress: Progress) -> None:
    """Tells what came of a build's cases, but for those that were measured `before`."""
    for case in (case for case in making.cases if case.id not in before):
        row = _row(place, making, case)
        how = row["error"] if row["status"] == ERROR else _in_words(row)
        progress.note(f"{making.checkpoint} at {making.image_size}, {making.scheme}, {case.images}: {how}")


def _in_words(row: Row) -> str:
    error = "no number" if row["kl"] is None else f"{row['kl']:.2g}"
    return f"{row['status']}, {row['bytes'] / 1e6:,.1f} MB, KL {error}"


def _row(place: Path, making: Making, case: Case) -> Row:
    """A case's row in this spec's words: an earlier one may have called the same checkpoint or pictures otherwise."""
    row = read_row(place, case.id)
    if row is None:  # somebody removed it meanwhile
        return error_row(making, case, FastVLMError("its row is gone; type the same command again"))
    return {**row, **labels(making, case), "build": row["build"]}
