"""`fastvlm sweep`: validation over checkpoints × image sizes × schemes × pictures. Exit code 1 for cases without it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from fastvlm.commands import options
from fastvlm.quoting import printable
from fastvlm.terminal import TerminalProgress, new_console

if TYPE_CHECKING:
    from rich.console import Console

    from validation.sweep.rows import Row
    from validation.sweep.sweeping import Swept

_WIDE = 200  # columns: rich would cut cells that a terminal wraps


@click.command(short_help="Validate many builds, and compare their size, latency and error.")
@click.argument("spec", metavar="SPEC.yaml", callback=options.filled)
@click.option("-o", "--output", required=True, metavar="DIR", callback=options.filled, help="The sweep's folder.")
@click.option(
    "--workers", type=int, default=1, show_default=True, metavar="N",
    help="Processes of this machine, each with a build of its own and the memory that this takes.",
)  # fmt: skip
@click.option(
    "--ray", metavar="ADDRESS", callback=options.filled,
    help="A running Ray cluster in place of processes: auto, or HOST:PORT. All its machines must see "
    "DIR and the checkpoints.",
)  # fmt: skip
@click.option("--parquet", is_flag=True, help="Write the table as Parquet as well.")
@options.as_json
@options.debug
def sweep(spec: str, output: str, workers: int, ray: str | None, parquet: bool, as_json: bool) -> None:
    """Validate every combination that SPEC.yaml lists: checkpoints × image sizes × schemes × sets of pictures.

    Each build is exported, compared with its checkpoint on each set of pictures, and removed again. DIR gets a row for
    each case as soon as it is measured, then table.json, and pareto.svg: size, estimated latency and error, with what
    no other build beats. The same command goes on where it was interrupted, and measures what a changed spec adds.

    Exit code 1 where a case could not be measured; a build that misses its limits is a result like any other.
    """
    from fastvlm.errors import UsageError

    if ray is not None and workers != 1:
        raise UsageError("--workers is for this machine, and --ray gives the work to a cluster; leave one of them out")
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from validation.sweep import sweep as run

    swept = run(spec, output, workers=workers, ray=ray, parquet=parquet, progress=progress)
    if as_json:
        options.show_json(swept.document)
    else:
        show_rows(swept.rows, new_console(width=_WIDE))
    for file in swept.files:
        options.say(f"written: {file}", err=as_json)
    more = [*(["--workers", str(workers)] if workers != 1 else []), *(["--ray", ray] if ray else [])]
    _end(swept, ["fastvlm", "sweep", spec, "-o", output, *more, *(["--parquet"] if parquet else [])])


def _end(swept: Swept, typed: list[str]) -> None:
    if swept.lacking:
        options.say(f"Error: {swept.lacking} of {len(swept.rows)} cases could not be measured (status error)", err=True)
        options.next_step(f"{shlex.join(typed)}, which tries these again")
        raise click.exceptions.Exit(1)
    options.next_step(
        "look at pareto.svg, then fastvlm export CHECKPOINT --quantize SCHEME -o BUILD for the one chosen"
    )


def show_rows(rows: list[Row], console: Console) -> None:
    """Prints a row for each case, and below it what could not be measured."""
    from rich.table import Table

    device = rows[0]["device"]
    table = Table(title=f"first token, tokens/s and memory are estimates for {device}")
    for head in (
        "checkpoint",
        "image",
        "scheme",
        "for",
        "pictures",
        "verdict",
        "MB",
        "first token",
        "tokens/s",
        "memory",
    ):
        table.add_column(head, no_wrap=True)
    for head in ("KL", "agree", "right", "best"):
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*(printable(cell, None) for cell in cells(row)))
    console.print(table)
    console.print(
        "best: on the same pictures no other build of its checkpoint and image size (kl), or of all (task), is at "
        "least as good in size, first token and error"
    )
    for row in rows:
        if row["error"] is not None:
            name = f"{row['checkpoint']} at {row['image_size']}, {row['scheme']}, {row['images']}"
            console.print(f"{name}: {row['error']}")


def cells(row: Row) -> list[str]:
    """Returns what the table shows of a row."""
    case = [row["checkpoint"], str(row["image_size"]), row["scheme"], row["target"], row["images"], row["status"]]
    if row["bytes"] is None or row["first_token"] is None:
        return case
    kl = "no number" if row["kl"] is None else f"{row['kl']:.2g}"
    right = "" if not row["answered"] else f"{row['build_right']}/{row['answered']}"
    best = " ".join(word for word, name in (("kl", "front"), ("task", "task_front")) if row[name])
    return [
        *case, f"{row['bytes'] / 1e6:,.1f}", f"{row['first_token'] * 1e3:.3g} ms", f"{row['tokens_per_second']:,.1f}",
        f"{row['memory'] / 1e9:.2f} GB", kl, f"{row['agree']}/{row['questions']}", right, best,
    ]  # fmt: skip
