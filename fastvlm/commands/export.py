"""`fastvlm export`: a checkpoint becomes a build folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress


@click.command(short_help="Make a Core ML build folder from a checkpoint.")
@click.argument("checkpoint", callback=options.filled)
@click.option("-o", "--output", required=True, metavar="BUILD", callback=options.filled, help="The folder to make.")
@options.image_sizes
@options.context
@options.only
@options.target
@options.max_file_size
@options.quantize
@options.calibration
@options.checkpoint_options
@options.overwrite
@options.debug
def export(checkpoint: str, output: str, context: int | None, overwrite: bool, **asked: Any) -> None:
    """Make a Core ML build folder from CHECKPOINT: a folder, `tiny` (the embedded one), or a Hub id.

    The build holds VisionEncoder.mlpackage, LanguageModel.mlpackage, the embedding table, the tokenizer, and
    manifest.json, which says how to run them. It appears under its name only when it is complete. The same command
    goes on where an interrupted one stopped: packages that it finished are taken over.
    """
    from fastvlm.publish import check_output

    check_output(output, overwrite)  # before the seconds that the imports below take
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from export import export as make_build

    if context is not None:
        asked["context"] = context
    build = make_build(checkpoint, Path(output), overwrite=overwrite, progress=progress, **asked)
    click.echo(f"build folder: {build}")
    if asked["only"] is None:
        reference = "" if checkpoint == "tiny" else f" --reference {shlex.quote(checkpoint)}"
        options.next_step(f"fastvlm validate {shlex.quote(str(build))}{reference}")
    else:
        options.next_step(f"fastvlm inspect {shlex.quote(str(build))}")
