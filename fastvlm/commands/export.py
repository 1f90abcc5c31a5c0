"""`fastvlm export`: a checkpoint becomes a build folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from fastvlm.build import COREML, COREML_EP, FORMATS
from fastvlm.commands import options
from fastvlm.commands.apple_app import show_steps
from fastvlm.terminal import TerminalProgress, new_console

# Options that are checked before the checkpoint is fetched and before libraries that take seconds are loaded.
EARLY = ("image_sizes", "context", "only", "target", "max_file_size", "quantize", "calibration", "purpose", "format")


@click.command(short_help="Make a build folder of Core ML packages, or of ONNX files, from a checkpoint.")
@click.argument("checkpoint", callback=options.filled)
@click.option("-o", "--output", required=True, metavar="BUILD", callback=options.filled, help="The folder to make.")
@click.option(
    "--format", type=click.Choice(FORMATS), default=COREML, show_default=True,
    help="Core ML packages, or ONNX files for onnxruntime (docs/onnx.md).",
)  # fmt: skip
@options.image_sizes
@options.context
@options.only
@options.target
@options.max_file_size
@options.quantize
@options.calibration
@options.purpose
@options.checkpoint_options
@options.overwrite
@options.debug
def export(checkpoint: str, output: str, overwrite: bool, **asked: Any) -> None:
    """Make a build folder from CHECKPOINT: a folder, `tiny` (the embedded one), or a Hub id.

    The build holds VisionEncoder.mlpackage, LanguageModel.mlpackage, the embedding table, the tokenizer, and
    manifest.json, which says how to run them. It appears under its name only when it is complete. The same command
    goes on where an interrupted one stopped: packages that it finished are taken over.

    With `--format onnx` it holds VisionEncoder.onnx and LanguageModel.onnx with their data files instead; targets and
    schemes are then onnxruntime's.

    With `--for apple-app` it holds fastvithd.mlpackage alone, which Apple's sample app takes in place of its own.
    """
    from export.formats import check_format
    from fastvlm.publish import check_output

    check_format(**{name: asked[name] for name in EARLY})
    check_output(output, overwrite)  # before the seconds that the imports below take
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from export import export as make_build

    build = make_build(checkpoint, Path(output), overwrite=overwrite, progress=progress, **asked)
    show_table(build)
    options.say(f"build folder: {build}")
    if asked["purpose"] is not None:
        show_steps(build)
    if asked["target"] == COREML_EP:
        options.next_step(options.INTO_AN_APP)
    elif asked["only"] is None:
        reference = "" if checkpoint == "tiny" else f" --reference {shlex.quote(checkpoint)}"
        options.next_step(f"fastvlm validate {shlex.quote(str(build))}{reference}")
    else:
        options.next_step(f"fastvlm inspect {shlex.quote(str(build))}")


def show_table(build: Path) -> None:
    """Shows, on stderr, what `mixed` chose for which layer and what that costs, where it chose."""
    from fastvlm.commands.compression import show_compression
    from fastvlm.manifest import read_manifest

    record = read_manifest(build)["compression"].get("sensitivity")
    if record is not None:
        show_compression(record, new_console(sys.stderr))
