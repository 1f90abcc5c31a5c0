"""`fastvlm fit`: whether a size, a checkpoint or a build fits a device, how fast it might be, and what to export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.terminal import new_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fastvlm.devices import Device
    from validation.fit.advice import Advice
    from validation.fit.estimating import Estimate
    from validation.fit.memory import Memory
    from validation.fit.sizes import Sizes

SCHEMA = "0.1"
_WIDE = 200  # columns: rich would cut cells that a terminal wraps
_SHORT = {"ane": "engine", "gpu": "gpu"}


@click.command(short_help="Estimate whether a model fits a device, and how fast it is.")
@click.argument("target", metavar="SIZE|CHECKPOINT|BUILD", callback=options.filled)
@options.device
@options.image_sizes
@options.context
@click.option(
    "--quantize", metavar="SCHEME|FILE", callback=options.filled,
    help="This scheme alone: fp16, int8, lut6, lut4, int4, or a YAML recipe. Default: each of them.",
)  # fmt: skip
@click.option(
    "--target", "engine", type=click.Choice(["ane", "gpu"]),
    help="The language model on this alone: the Neural Engine or the GPU. Default: both.",
)  # fmt: skip
@options.as_json
@options.debug
def fit(
    target: str, device: str | None, image_sizes: tuple[int, ...], context: int | None, quantize: str | None,
    engine: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Say before an export what SIZE (0.5b, 1.5b, 7b, vicuna-7b), CHECKPOINT or BUILD would be on a device.

    File sizes per scheme beside what an app may weigh, memory beside what an app gets, first token and tokens a
    second, and the export command for it. Times are estimates from published speeds, and how far those are from what
    others measured stands below every answer. Of a checkpoint only config.json and the headers of its files are read.

    Without --device the whole table of devices, each with what is recommended for it.
    """
    from fastvlm.devices import device as named

    chosen = None if device is None else named(device)
    from validation.fit.advice import advise, classes
    from validation.fit.sizes import sizes_of

    sizes = sizes_of(target)
    groups = classes() if chosen is None else ((chosen,),)
    found = [advise(sizes, each[0], image_sizes, context, quantize, engine) for each in groups]
    if as_json:
        options.show_json(_content(sizes, groups, found))
    else:
        _show(sizes, groups, found, detailed=chosen is not None)
    _name_next(target, sizes, chosen, found)


def _content(sizes: Sizes, groups: Sequence[Sequence[Device]], found: Sequence[Advice]) -> dict[str, Any]:
    """The JSON document; docs/choosing.md describes it."""
    from dataclasses import asdict

    from validation.fit.check import checks

    return {
        "schema": SCHEMA,
        "target": {
            "name": sizes.name, "kind": sizes.kind, "checkpoint": sizes.checkpoint, "assumed": list(sizes.assumed),
            "vision": asdict(sizes.vision), "text": asdict(sizes.text),
        },
        "devices": [
            {**advice.as_json(), "stands_for": [device.name for device in group]}
            for group, advice in zip(groups, found, strict=True)
        ],
        "check": [each.as_json() for each in checks()],
    }  # fmt: skip


def _show(
    sizes: Sizes, groups: Sequence[Sequence[Device]], found: Sequence[Advice], detailed: bool
) -> None:  # fmt: skip
    from validation.fit.check import in_a_line

    console = new_console(width=_WIDE)
    one = next(each for advice in found for each in advice.estimates)
    where = groups[0][0].name if detailed else "every device of the table"
    kind = "its own files; times" if one.real else "everything"
    console.print(f"{sizes.name} on {where}: {kind} estimated, nothing measured on a device")
    for note in sizes.assumed:
        console.print(f"  assumed: {note}")
    if detailed:
        _show_device(found[0], console)
    else:
        _show_table(groups, found, console)
    console.print()
    console.print(in_a_line())


def _show_device(advice: Advice, console: Console) -> None:
    """Every choice at every image size, what is recommended, and what had to be assumed."""
    device = advice.device
    held = "/".join(map(str, device.memory_gb))
    console.print(f"  {device.chip.name}, engine {device.engine.name}, {held} GB of memory")
    sides = list(dict.fromkeys(each.image_size for each in advice.estimates))
    by_side = {side: [each for each in advice.estimates if each.image_size == side] for side in sides}
    _show_sizes(by_side[max(sides)], console)
    for side, rows in by_side.items():
        _show_times(side, rows, console)
    for reason in advice.refused:
        console.print()
        console.print(f"not there: {reason}")
    console.print()
    console.print(advice.why)
    if advice.command is not None:
        console.print(f"  {advice.command}")
    for note in dict.fromkeys(note for each in advice.estimates for note in each.assumed):
        console.print(f"assumed: {note}")


def _show_sizes(rows: Sequence[Estimate], console: Console) -> None:
    """Files and memory, which the image size hardly changes."""
    memory = rows[0].memory
    more = f", {_gb(memory.increased)} entitled" if memory.increased and memory.increased != memory.limit else ""
    gets = "" if memory.limit is None else f"an app gets {_gb(memory.limit)}{more}; "
    console.print()
    console.print(f"files: an app may weigh {_gb(rows[0].app_limit)}")
    console.print(f"memory: {gets}{memory.basis}")
    table = _table("scheme", "for", "files", "encoder", "language", "embeddings", "memory", "fits")
    for each in rows:
        files, app = each.files, "" if each.fits_app else ", too large for an app"
        table.add_row(
            each.scheme, _SHORT[each.target], _gb(files.total), _gb(files.encoder),
            _language(files.language), _gb(files.embeddings), _gb(each.memory.need),
            f"{_fits(each.memory)}{app}",
        )  # fmt: skip
    console.print(table)


def _show_times(side: int, rows: Sequence[Estimate], console: Console) -> None:
    """First token and tokens a second, and what each stage waits for."""
    first = rows[0]
    text = f"{first.image_tokens} tokens, {first.text_tokens} of text, context {first.context}"
    console.print()
    console.print(f"images of {side}×{side}: {text}")
    table = _table("scheme", "for", "first token", "tokens/s", "encode", "prefill", "each token")
    for each in rows:
        stages = [f"{_ms(stage.seconds)} ({stage.bound})" for stage in each.stages]
        table.add_row(
            each.scheme,
            _SHORT[each.target],
            _ms(each.first_token),
            _rate(each.tokens_per_second),
            *stages,
        )
    console.print(table)


_FITS = {"yes": "yes", "with increased-memory-limit": "entitled", "no": "no", "unknown": "unknown"}


def _fits(memory: Memory) -> str:
    return _FITS[memory.verdict] if memory.leaves_room or memory.verdict == "no" else "barely"


def _language(sizes: Sequence[int]) -> str:
    """One package's size, or how many there are and their sum."""
    return _gb(sizes[0]) if len(sizes) == 1 else f"{_gb(sum(sizes))} in {len(sizes)}"


def _show_table(groups: Sequence[Sequence[Device]], found: Sequence[Advice], console: Console) -> None:
    """One line for each class of device, with what is recommended at the largest image."""
    table = _table("device", "chip", "memory", "scheme", "for", "files", "needs", "fits", "first token", "tokens/s")
    for group, advice in zip(groups, found, strict=True):
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        head = (f"{group[0].name}{more}", group[0].chip.name, f"{min(group[0].memory_gb)} GB")
        best = advice.best
        if best is None:
            table.add_row(*head, "nothing fits")
            continue
        app = "" if best.fits_app else ", as a download"
        table.add_row(
            *head, best.scheme, _SHORT[best.target], _gb(best.files.total), _gb(best.memory.need),
            f"{_fits(best.memory)}{app}", _ms(best.first_token), _rate(best.tokens_per_second),
        )  # fmt: skip
    one = next(each for advice in found for each in advice.estimates)
    side = max(each.image_size for each in found[0].estimates)
    console.print(f"  images of {side}×{side}, {one.text_tokens} tokens of text, context {one.context}")
    console.print()
    console.print(table)


def _table(*heads: str) -> Table:
    from rich.table import Column, Table

    return Table(*(Column(head, no_wrap=True) for head in heads), box=None, padding=(0, 1, 0, 1))


def _gb(count: int) -> str:
    from validation.fit.words import size

    return size(count)


def _ms(seconds: float) -> str:
    from validation.fit.words import duration

    return duration(seconds)


def _rate(value: float) -> str:
    from validation.fit.words import rate

    return rate(value)


def _name_next(target: str, sizes: Sizes, chosen: Device | None, found: Sequence[Advice]) -> None:
    """The export that is recommended; of a build that fits, its proof; without a device, one that has one."""
    from validation.fit.advice import quoted

    if chosen is None:
        options.next_step(f"fastvlm fit {quoted(target)} --device {quoted('iPhone 15 Pro')}")
    elif found[0].command is not None:
        whose = "the one that the build was made from" if sizes.built else "yours"
        options.next_step(found[0].command + ("" if sizes.checkpoint else f", where CHECKPOINT is {whose}"))
    elif found[0].best is not None:
        options.next_step(options.validation_of(target))
    else:
        options.next_step(f"fastvlm fit {quoted(target)}, for the devices that it does fit")
