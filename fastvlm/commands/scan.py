"""`fastvlm scan`: what every tensor of a checkpoint reaches, and what that asks of an export to fp16."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.errors import TensorError
from fastvlm.exponents import exponents_in_words
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from export.protection import Protection
    from export.ranges.result import Ranges

LARGEST = 10  # tensors that are listed


@click.command(short_help="Find what a checkpoint's values reach, and what fp16 asks.")
@click.argument("checkpoint", callback=options.filled)
@options.image_sizes
@options.own_pictures
@options.source_options
@click.option("--again", is_flag=True, help="Do not take the result of an earlier scan.")
@options.as_json
@options.debug
def scan(checkpoint: str, as_json: bool, **asked: Any) -> None:
    """Run CHECKPOINT in float32 over photos, hostile frames and prompts, and record what every tensor reaches.

    `export` finds the result and takes exact powers of two out of what would leave fp16. Hostile frames are noise,
    saturated colours, a checkerboard, one bright pixel, black; prompts are long, random, and one token repeated.
    Exit code 1: something leaves fp16 that no power of two cures.
    """
    from export.plan import check_options

    check_options(asked["image_sizes"], calibration=asked["calibration"])
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from export import scan as scan_checkpoint
        from export.protection import PROTECTED
        from export.ranges.exponents import asked_of

    ranges = scan_checkpoint(checkpoint, progress=progress, **asked)
    try:
        protection, problems = asked_of(ranges)
    except TensorError as error:  # what was found shall be seen all the same
        protection, problems = PROTECTED, (str(error),)
    if as_json:
        content = {"ranges": ranges.as_json(), "protection": protection.as_json(), "problems": list(problems)}
        options.show_json(content)
    else:
        show(ranges, protection)
    for problem in problems:
        options.say(f"problem: {problem}", err=True)
    sizes = "".join(f" --image-size {size}" for size in asked["image_sizes"])
    base = f" --base {shlex.quote(asked['base'])}" if asked["base"] else ""
    pickle = " --allow-pickle" if asked["allow_pickle"] else ""
    options.next_step(f"fastvlm export {shlex.quote(checkpoint)} -o BUILD{sizes}{base}{pickle}")
    if problems:
        raise click.exceptions.Exit(1)


def show(ranges: Ranges, protection: Protection) -> None:
    """Prints each part with its largest tensors, and the exponents asked for."""
    sizes = ", ".join(map(str, ranges.image_sizes))
    options.say(
        f"{len(ranges.pictures)} pictures at {sizes} pixels; "
        f"{len(ranges.prompts)} prompts of {ranges.positions:,} positions"
    )
    for prefix in dict.fromkeys(tensor.name.partition(".")[0] + "." for tensor in ranges.tensors):
        _show_part(ranges, prefix)
    scaled = exponents_in_words(protection.as_json())
    said = f"export stores divided, which is undone behind them: {scaled}" if scaled else "nothing has to be scaled"
    click.echo()
    options.say(said)


def _show_part(ranges: Ranges, prefix: str) -> None:
    from export.ranges.result import ALLOWED, FP16_LARGEST

    tensors, largest = ranges.part(prefix), ranges.largest(LARGEST, prefix)
    click.echo()
    options.say(f"{prefix.rstrip('.')}: {len(tensors)} tensors")
    for limit in (FP16_LARGEST, ALLOWED):
        first = ranges.first_beyond(limit, prefix)
        options.say(f"  first beyond {limit:,.0f}: {'none' if first is None else first.name}")
    small = max(tensors, key=lambda tensor: tensor.subnormal)
    options.say(f"  most subnormals: {100 * small.subnormal:.3g} % of {small.name}")
    rows = [(_number(tensor.peak), f"{100 * tensor.subnormal:.3g} %", tensor.name, tensor.worst) for tensor in largest]
    for row in (("largest", "subnormal", "tensor", "on the input"), *rows):
        widths = (10, 10, -max(len(name) for _, _, name, _ in rows), 0)
        cells = (
            cell.rjust(width) if width >= 0 else cell.ljust(-width) for cell, width in zip(row, widths, strict=True)
        )
        options.say("  ".join(cells).rstrip())


def _number(value: float) -> str:
    return f"{value:,.6g}"
