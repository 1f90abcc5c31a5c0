"""`fastvlm verify`: is a bundle whole, and does it run as it should? Exit code 1 when it is not."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from fastvlm.commands import options
from fastvlm.quoting import printable, readable
from fastvlm.terminal import TerminalProgress, new_console

if TYPE_CHECKING:
    from ios_bundle import Verification
    from validation.bundle_selftest import SelfTestResult

SHOWN = 20  # problems that are listed one by one


@click.command(short_help="Check that an iOS bundle is whole, and run its self-test.")
@click.argument("bundle", metavar="DIR", callback=options.filled)
@click.option(
    "--tree", metavar="HASH", callback=options.digits,
    help="The tree hash that the bundle must have, or at least its first 8 digits, as `fastvlm bundle` told it.",
)  # fmt: skip
@click.option(
    "--compiled", is_flag=True,
    help="The packages were compiled on a Mac (scripts/compile_models.sh): check everything else.",
)  # fmt: skip
@click.option("--run", "runs", is_flag=True, help="If it is whole, also execute its self-test, from photo to text.")
@click.option(
    "--backend", type=click.Choice(["mil", "coreml"]),
    help="Who executes with --run: this project's runtime on any machine, or Core ML on a Mac.  [default: mil]",
)  # fmt: skip
@options.as_json
@options.debug
def verify(
    bundle: str, tree: str | None, compiled: bool, runs: bool, backend: str | None, as_json: bool
) -> None:  # fmt: skip
    """Compare every file of the bundle DIR with its seal: nothing changed, missing, added or renamed.

    With --run a host that knows nothing but DIR computes the self-test in it: photo, prompts, image tokens, logits,
    answer. How good the numbers are, `fastvlm validate` said of the build before it was bundled.
    """
    if backend is not None and not runs:
        raise click.UsageError("--backend says who executes, and nothing is executed without --run")
    if compiled and runs:
        raise click.UsageError("--run executes packages, and with --compiled they are compiled; leave one of them out")
    from ios_bundle import verify as check

    progress = TerminalProgress()
    found = check(bundle, tree=tree, compiled=compiled, progress=progress)
    content = found.as_json()
    if not as_json:
        _show(found)
    tested = _run(bundle, backend or "mil", progress) if runs and found.whole else None
    if tested is not None:
        content["selftest"] = tested.as_json()
    if as_json:
        options.show_json(content)
    elif tested is not None:
        _show_selftest(tested)
    if not found.whole:
        count = len(found.problems)
        raise _failed(f"Error: {bundle} is not what it should be, {count} problem{'s'[: count != 1]}{_advice(found)}")
    if tested is not None and not tested.passed:
        missed = [check.name for check in tested.checks if not check.passed]
        raise _failed(f"Error: the self-test of {bundle} failed: {', '.join(missed)}; do not ship it")
    if not found.compiled:  # which nothing here runs
        quoted, untested = shlex.quote(bundle), runs or not found.has_selftest
        options.next_step(f'fastvlm run {quoted} IMAGE "PROMPT"' if untested else f"fastvlm verify {quoted} --run")


def _run(bundle: str, backend: str, progress: TerminalProgress) -> SelfTestResult:
    with progress.stage("Loading libraries"):
        from validation.bundle_selftest import run_selftest

    return run_selftest(bundle, backend, progress)


def _show(found: Verification) -> None:
    for problem in found.problems[:SHOWN]:
        options.say(problem)
    if len(found.problems) > SHOWN:
        options.say(f"… and {len(found.problems) - SHOWN} more (--json lists all)")
    if found.whole and found.seal is not None:
        word = "" if found.validated else "; UNVALIDATED: nobody has proven its numbers"
        options.say(
            f"{printable(str(found.name))}: whole, {len(found.seal.files)} files, {found.seal.bytes / 1e9:.3f} GB{word}"
        )
        options.say(f"tree hash: {found.seal.tree}")
    for model in found.compiled:
        options.say(f"{printable(model)}: compiled on a Mac, which no hash covers")


def _advice(found: Verification) -> str:
    """What helps: a copy, where it is no matter of what the problems themselves say to do."""
    told = ("; delete it", "it is another bundle", "with --compiled everything else is checked")
    return "" if all(problem.endswith(told) for problem in found.problems) else "; copy it again"


def _show_selftest(tested: SelfTestResult) -> None:
    """Prints every check with its value and tolerance, then the answer."""
    from rich.table import Table

    table = Table("self-test", "value", "tolerance", "", box=None, padding=(0, 2, 0, 0))
    for check in tested.checks:
        table.add_row(check.name, f"{check.value:.3g}", check.words, "ok" if check.passed else "MISSED")
    new_console().print(table)
    ties = f" (ties: {tested.ties})" if tested.ties else ""
    # Lines and scripts of the answer stay; none of its lines begins as one of ours
    answer = readable(tested.text).replace("\n", "\n  ")
    click.echo(f"{tested.backend}: {answer}{ties}")


def _failed(text: str) -> click.exceptions.Exit:
    options.say(text, err=True)
    return click.exceptions.Exit(1)
