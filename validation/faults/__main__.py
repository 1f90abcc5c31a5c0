"""`python -m validation.faults`: the fault suite, or clean seeds, as a table; exit code 1 unless all is well."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from fastvlm_ref.threads import one_thread
from validation.faults.catalogue import CATALOGUE, SHORT
from validation.faults.checkpoints import CHECKPOINTS, subject
from validation.faults.fault import Fault
from validation.faults.seeds import clean
from validation.faults.suite import Outcome, run
from validation.limits import worst

ROW = "{:<46}{:<11}{:<11}{:<44}{:<52}{:>6}"
HEAD = ROW.format("fault", "where", "rung", "caught by", "worst row", "s")


@click.command()
@click.option("--checkpoint", type=click.Choice(CHECKPOINTS), default=CHECKPOINTS[0], show_default=True)
@click.option("--short", is_flag=True, help="Plant a few kinds of every rung and place.")
@click.option(
    "--seeds", type=click.IntRange(1), help="Plant nothing: compare clean small checkpoints of that many seeds."
)
@click.option("--fault", "names", multiple=True, help="Plant the faults of this name alone (repeatable).")
@one_thread()
def main(checkpoint: str, short: bool, seeds: int | None, names: tuple[str, ...]) -> None:
    """Plants faults into a build, its programs or its reference, and shows which rungs of the comparison find them."""
    faults = _asked(SHORT if short else CATALOGUE, names)
    with TemporaryDirectory() as folder:
        good = _seeds(seeds, Path(folder)) if seeds else _faults(checkpoint, faults, Path(folder))
    sys.exit(0 if good else 1)


def _asked(faults: Sequence[Fault], names: tuple[str, ...]) -> Sequence[Fault]:
    unknown = sorted(set(names) - {fault.name for fault in faults})
    if unknown:
        raise click.UsageError(f"no fault is called {', '.join(unknown)}; the table of a whole run shows all names")
    return [fault for fault in faults if fault.name in names] if names else faults


def _faults(checkpoint: str, faults: Sequence[Fault], folder: Path) -> bool:
    click.echo(HEAD)
    outcomes = []
    for outcome in run(faults, subject(checkpoint, folder)):
        outcomes.append(outcome)
        click.echo(_line(outcome))
    alarms = sum(not outcome.good for outcome in outcomes if outcome.fault is None)
    planted = [outcome for outcome in outcomes if outcome.fault is not None]
    caught = sum(outcome.good for outcome in planted)
    missed = sum(not outcome.found_by for outcome in planted)
    others = len(planted) - caught - missed
    seconds = sum(outcome.seconds for outcome in outcomes)
    click.echo(
        f"\n{checkpoint}: {caught} of {len(planted)} caught, each by its rung; {others} by others alone, "
        f"{missed} missed; {alarms} false alarms; {seconds:.0f} s"
    )
    return caught == len(planted) and not alarms


def _line(outcome: Outcome) -> str:
    fault = outcome.fault
    name, where, rung = (fault.name, fault.where, fault.rung) if fault else ("(nothing planted)", "", "")
    by = ", ".join(outcome.found_by) or ("nothing" if fault is None else "MISSED")
    mark = "" if outcome.good else " !"
    return ROW.format(name, where, rung, by + mark, outcome.worst[:51], f"{outcome.seconds:.1f}")


def _seeds(count: int, folder: Path) -> bool:
    alarms = 0
    values: dict[str, dict[str, float]] = {}
    for seed, outcome in clean(range(count), folder):
        for row in outcome.rows:
            values.setdefault(row.limit.key, {})[f"seed {seed}"] = row.value
        if not outcome.good:
            alarms += 1
            click.echo(f"seed {seed}: {', '.join(outcome.found_by)}: {outcome.worst}")
    for key, found in values.items():
        row = worst(key, found)
        click.echo(f"{key:<28}{row.value:>10.3g}   {row.limit.words:<10} {row.subject}")
    click.echo(f"\n{count} clean seeds: {alarms} alarms")
    return not alarms


if __name__ == "__main__":
    main()
