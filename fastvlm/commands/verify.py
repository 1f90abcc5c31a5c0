"""`fastvlm verify`: is a bundle whole? Exit code 1 when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from ios_bundle import Verification

SHOWN = 20  # problems that are listed one by one


@click.command(short_help="Check that an iOS bundle is whole.")
@click.argument("bundle", metavar="DIR", callback=options.filled)
@click.option(
    "--tree", metavar="HASH", callback=options.filled,
    help="The tree hash that the bundle must have, or its first digits, as `fastvlm bundle` told it.",
)  # fmt: skip
@click.option(
    "--compiled", is_flag=True,
    help="The packages were compiled on a Mac (scripts/compile_models.sh): check everything else.",
)  # fmt: skip
@options.as_json
@options.debug
def verify(bundle: str, tree: str | None, compiled: bool, as_json: bool) -> None:
    """Compare every file of the bundle DIR with its seal: nothing changed, missing, added or renamed.

    Whether its numbers are right, `fastvlm validate` said of the build before it was bundled.
    """
    from ios_bundle import verify as check

    found = check(bundle, tree=tree, compiled=compiled, progress=TerminalProgress())
    if as_json:
        import json

        click.echo(json.dumps(found.as_json(), ensure_ascii=False, indent=1))
    else:
        _show(found)
    if not found.whole:
        count = len(found.problems)
        raise _failed(f"Error: {bundle} is not what it should be, {count} problem{'s'[: count != 1]}; copy it again")


def _show(found: Verification) -> None:
    for problem in found.problems[:SHOWN]:
        click.echo(problem)
    if len(found.problems) > SHOWN:
        click.echo(f"… and {len(found.problems) - SHOWN} more (--json lists all)")
    if found.whole and found.seal is not None:
        word = "" if found.validated else "; UNVALIDATED: nobody has proven its numbers"
        click.echo(f"{found.name}: whole, {len(found.seal.files)} files, {found.seal.bytes / 1e9:.3f} GB{word}")
        click.echo(f"tree hash: {found.seal.tree}")
    for model in found.compiled:
        click.echo(f"{model}: compiled on a Mac, which no hash covers")


def _failed(text: str) -> click.exceptions.Exit:
    click.echo(text, err=True)
    return click.exceptions.Exit(1)
