"""`fastvlm validate`: does a build compute what its checkpoint computes? Exit code 1 when it does not."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from rich.console import Console

    from validation.verdict import Verdict


@click.command(short_help="Compare a build with the checkpoint it was made from.")
@click.argument("build", callback=options.filled)
@options.reference
@click.option("--images", metavar="DIR", help="Pictures to compare on. Default: the three that are shipped.")
@click.option(
    "--backend", type=click.Choice(["mil", "coreml"]), default="mil", show_default=True,
    help="Who executes the packages: this project's runtime on any machine, or Core ML on a Mac.",
)  # fmt: skip
@options.source_options
@options.as_json
@options.debug
def validate(build: str, as_json: bool, **asked: Any) -> None:
    """Execute the packages of BUILD, compare them with PyTorch on the checkpoint, and write the verdict into BUILD.

    Writes validation.json (every limit with its value) and, when every limit holds, selftest/, by which a device can
    be tested. Exit code 1 when a limit is missed: nothing calls such a build good.
    """
    from fastvlm.manifest import read_manifest

    read_manifest(build)  # before the seconds that the import below takes
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from validation import validate as compare

    verdict = compare(build, progress=progress, **asked)
    if as_json:
        _show_json(verdict)
    else:
        from rich.console import Console

        show_verdict(verdict, Console(soft_wrap=True, highlight=False))
        click.echo(f"verdict: {'passed' if verdict.passed else 'FAILED'} ({verdict.path})")
    if verdict.passed:
        options.next_step(f'fastvlm run {shlex.quote(build)} IMAGE "PROMPT"')
        return
    click.echo(f"Error: {_missed(verdict)}; this build is not good, do not ship it", err=True)
    options.next_step(f"fastvlm inspect {shlex.quote(build)}")
    raise click.exceptions.Exit(1)


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Prints the answers of both sides beside each other, then every limit with its worst value."""
    from rich.table import Table
    from rich.text import Text

    answers = Table("picture", "question", "Core ML (executed here)", "PyTorch", "", title="Answers")
    for row in verdict.answers:
        cells = (row.image, row.prompt, row.coreml, row.pytorch, "same" if row.same else "DIFFERENT")
        answers.add_row(*map(Text, cells))
    console.print(answers)
    limits = Table("quantity", "worst value", "limit", "", title="How far apart they are")
    for measured in verdict.rows:
        word = "ok" if measured.passed else "MISSED"
        limits.add_row(measured.limit.key, f"{measured.value:.3g}", measured.limit.words, word)
    console.print(limits)
    if verdict.not_measured:
        console.print(f"not measured by this backend on this build: {', '.join(verdict.not_measured)}")


def _missed(verdict: Verdict) -> str:
    missed = [row for row in verdict.rows if not row.passed]
    if not missed:
        return "nothing was measured"
    values = (f"{row.limit.key} = {row.value:.3g}, limit {row.limit.words}" for row in missed)
    return f"limits missed: {', '.join(values)}"


def _show_json(verdict: Verdict) -> None:
    from fastvlm.manifest import dump

    click.echo(dump(verdict.as_json()).decode(), nl=False)
