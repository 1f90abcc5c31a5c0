"""`fastvlm synth`: a checkpoint of official size with drawn weights, to measure and test with."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress

SIZES = ("0.5b", "1.5b", "7b", "vicuna-7b")  # a test compares them with fastvlm_ref.synthetic, which is slow to import


@click.command(short_help="Make a checkpoint of official size with drawn weights.")
@click.argument("size", type=click.Choice(SIZES))
@click.option("-o", "--output", required=True, metavar="DIR", callback=options.filled, help="The folder to make.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the weights.")
@click.option(
    "--format", "layout", type=click.Choice(["llava", "hf"]), default="llava", show_default=True,
    help="Names and shapes: Apple's own, or those of the Hugging Face port.",
)  # fmt: skip
@click.option(
    "--tokenizer", metavar="FOLDER", callback=options.filled,
    help="Take this folder's tokenizer. Default: a generated one of official size.",
)  # fmt: skip
@click.option(
    "--outliers", is_flag=True, help="Plant residual spikes, large k biases and tower activations over 65,504."
)
@options.overwrite
@options.debug
def synth(
    size: str, output: str, seed: int, layout: str, tokenizer: str | None, outliers: bool, overwrite: bool
) -> None:
    """Make a checkpoint of SIZE: official names, shapes, dtypes and config, weights drawn from a seed.

    It answers with noise, and everything else is as with a real one: export, run and validate take it. Sizes on the
    disk: 0.5b 1.5 GB, 1.5b 3.8 GB, 7b 15.5 GB, vicuna-7b 13.8 GB; the memory does not grow with them.
    """
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from fastvlm_ref.synthetic.folder import Recipe, write_synthetic
        from fastvlm_ref.synthetic.sizes import SIZES as known

    folder = Path(tokenizer).expanduser() if tokenizer is not None else None
    recipe = Recipe(known[size], layout, seed, outliers, folder)
    place = write_synthetic(recipe, output, overwrite, progress)
    options.say(f"checkpoint: {place}")
    options.next_step(f"fastvlm export {shlex.quote(str(place))} -o BUILD")
