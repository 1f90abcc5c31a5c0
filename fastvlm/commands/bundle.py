"""`fastvlm bundle`: a validated build becomes a folder that an app or a server ships."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress


@click.command(short_help="Make an iOS bundle of a validated build.")
@click.argument("build", callback=options.filled)
@click.option("-o", "--output", required=True, metavar="DIR", callback=options.filled, help="The bundle to make.")
@click.option(
    "--for", "purpose", type=click.Choice(["app", "server"]), default="app", show_default=True,
    help="app: refuse what is larger than an app may be (4 GB uncompressed). server: for a download, of any size.",
)  # fmt: skip
@click.option(
    "--unvalidated", is_flag=True,
    help="Also take a build that no verdict stands for; the bundle then says of itself that nothing was proven.",
)  # fmt: skip
@options.overwrite
@options.debug
def bundle(build: str, output: str, purpose: str, unvalidated: bool, overwrite: bool) -> None:
    """Make an iOS bundle of BUILD: all that an app needs, sealed, with a self-test for the device.

    DIR goes into Xcode as a folder reference, or onto a server (docs/xcode.md). The same build gives the same bytes,
    wherever and whenever it is made. A build that `fastvlm validate` did not pass, or that changed since, is refused.
    """
    from ios_bundle import bundle as make_bundle
    from ios_bundle.seal import read_seal

    place = make_bundle(
        build, Path(output), purpose=purpose, unvalidated=unvalidated, overwrite=overwrite, progress=TerminalProgress()
    )
    seal, _ = read_seal(place)
    assert seal is not None
    options.say(f"bundle: {place}")
    options.say(f"  {len(seal.files)} files, {seal.bytes / 1e9:.3f} GB, tree hash {seal.tree}")
    options.next_step(f"fastvlm verify {shlex.quote(str(place))}")
