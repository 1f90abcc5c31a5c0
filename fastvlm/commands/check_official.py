"""`fastvlm check-official`: a real checkpoint against the logits that were published for it. Exit code 1: others."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress, new_console

if TYPE_CHECKING:
    from rich.console import Console

    from validation.official.check import OfficialCheck


@click.command("check-official", short_help="Compare a real checkpoint with its published logits.")
@click.argument("checkpoint", callback=options.filled)
@click.option(
    "--image", required=True, metavar="FILE", callback=options.filled,
    help="The picture that the logits were published for: COCO val2017 000000039769.jpg, 640×480.",
)  # fmt: skip
@options.source_options
@options.as_json
@options.debug
def check_official(checkpoint: str, image: str, as_json: bool, **asked: Any) -> None:
    """Ask CHECKPOINT, Apple's 0.5B, 1.5B or 7B, what transformers asked it, and compare three logits.

    The picture's centre, the prompt and the published numbers are those of transformers' conversion script. They were
    computed in bfloat16; here float32 is compared with them, which may differ by what such rounding explains. Exit code
    1 when it differs by more, or when the prompt has another length.
    """
    options.check_image(image)  # before the seconds that the imports below take
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from validation.official.check import check_official as check

    found = check(checkpoint, image, progress=progress, **asked)
    if as_json:
        options.show_json(found.as_json())
    else:
        show_check(found, new_console())
    quoted = shlex.quote(checkpoint)
    if found.passed:
        options.say(
            "Nobody may have seen this on real weights before: please report it, with the lines above.", err=True
        )
        options.next_step(f"fastvlm scan {quoted}")
        return
    options.say(f"Error: {_missed(found)}; {_reasons(found)}", err=True)
    options.next_step(f'fastvlm run {quoted} {shlex.quote(image)} "What are these?"')
    raise click.exceptions.Exit(1)


def show_check(found: OfficialCheck, console: Console) -> None:
    """Prints each logit beside the published one, then every limit with its value, then the verdict."""
    from rich.table import Table

    published = found.published
    console.print(f"recognised as {published.sizes}")
    console.print(f"positions: {found.positions}, expected {published.positions}")
    logits = Table("token", "published", "here, float32", "difference", "here, rounded to bfloat16", title="Logits")
    for row in found.logits:
        cells = (row.published, row.here, row.difference, row.rounded)
        logits.add_row(str(row.token), *(f"{value:.4f}" for value in cells))
    console.print(logits)
    console.print(
        f"a difference may be up to {found.allowed:.3g}: a share of the spread of all logits, {found.spread:.3g}"
    )
    limits = Table("quantity", "value", "limit", "", title="How far apart they are")
    for measured in found.rows:
        word = "ok" if measured.passed else "MISSED"
        limits.add_row(measured.limit.key, f"{measured.value:.3g}", measured.limit.words, word)
    console.print(limits)
    console.print(f"verdict: {'passed' if found.passed else 'FAILED'}")


def _missed(found: OfficialCheck) -> str:
    missed = (row for row in found.rows if not row.passed)
    return ", ".join(f"{row.limit.key} = {row.value:.3g}, limit {row.limit.words}" for row in missed)


def _reasons(found: OfficialCheck) -> str:
    """What may be behind it, the likeliest first."""
    if found.positions != found.published.positions:
        return "the tokenizer is not the one that the checkpoint was published with; fetch the checkpoint again"
    return (
        "the picture may be another one of this size, or saved anew, and the checkpoint a fine-tune or drawn weights; "
        "if the file is COCO's own and the checkpoint Apple's, the reference is wrong: report this"
    )
