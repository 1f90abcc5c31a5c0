"""`fastvlm profile`: how long each stage of an answer takes. Exit code 1 where a process ended before its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fastvlm.build import COMPUTE_UNITS
from fastvlm.commands import options
from fastvlm.errors import UsageError
from fastvlm.terminal import TerminalProgress, new_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from validation.coreml.placement import FunctionPlan
    from validation.profiling.contender import Contender
    from validation.profiling.result import Profile, Stage


@click.command(short_help="Measure each stage of a build.")
@click.argument("builds", nargs=-1, metavar="BUILD...", callback=options.all_filled)
@click.option(
    "--backend", "backends", type=click.Choice(["mil", "coreml", "onnx"]), multiple=True,
    help="Who executes packages: this project's runtime on any machine, or Core ML on a Mac. ONNX files run on "
    "onnxruntime. Repeat it to compare. Default: coreml on a Mac, mil elsewhere.",
)  # fmt: skip
@click.option(
    "--compute-units", type=click.Choice(COMPUTE_UNITS), multiple=True,
    help="Where Core ML may run; with --backend coreml alone. Repeat it to compare. Default: every choice.",
)  # fmt: skip
@click.option(
    "--runs", type=click.IntRange(1, 10_000), default=5, show_default=True, metavar="N",  # profiling.MOST_RUNS
    help="How often each stage is measured.",
)  # fmt: skip
@options.image_size
@click.option(
    "--connected", is_flag=True,
    help="List the phones and tablets that are connected to this Mac, with the udid that --device-udid takes, and end.",
)  # fmt: skip
@click.option(
    "--device-udid", metavar="UDID", callback=options.filled,
    help="Measure on a connected phone or tablet what coremltools' remote tools can: loads, and where Core ML would "
    "run each op (docs/profiling.md).",
)  # fmt: skip
@click.option(
    "--team", metavar="ID", callback=options.filled,
    help="Your Apple developer team, which signs the app that measures on the device; with --device-udid.",
)  # fmt: skip
@options.as_json
@options.debug
def profile(
    builds: tuple[str, ...], backends: tuple[str, ...], compute_units: tuple[str, ...], runs: int,
    image_size: int | None, connected: bool, device_udid: str | None, team: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure how long each stage takes: load, preprocess, encode, prefill, first token, decode at several contexts.

    Several builds, backends or compute units are compared: one run of each in turn, each in a process of its own. Of N
    runs the median and the quartiles are shown, the first load and the first run apart, and the peak of memory. With
    Core ML also which share of each function its compute plan puts on the Neural Engine, the GPU and the CPU. Exit code
    1 where a process ended before it was measured; the others go on.
    """
    if connected:
        _list_connected(as_json)
        return
    if not builds:
        raise UsageError("no build was named; give at least one build folder, or --connected to list devices")
    if team is not None and device_udid is None:
        raise UsageError("--team signs what runs on a device; name the device with --device-udid")
    progress = TerminalProgress(transient=True)
    with progress.stage("Loading libraries"):
        from validation.profiling.measuring import profile as measure

    found = measure(
        builds, backends=backends, compute_units=compute_units, runs=runs, image_size=image_size, progress=progress,
        device_udid=device_udid, team=team,
    )  # fmt: skip
    if as_json:
        options.show_json(found.as_json())
    else:
        show_profile(found, new_console())
    for failure in found.failures:
        options.say(f"Error: {failure.told}", err=True)
    options.next_step(options.after_profiling(builds[0]))
    if found.failures:
        raise click.exceptions.Exit(1)


def _list_connected(as_json: bool) -> None:
    """Prints the devices that are connected."""
    from validation.coreml.remote import connected_devices

    devices = connected_devices()
    if as_json:
        options.show_json([device.as_json() for device in devices])
    for device in () if as_json else devices:
        options.say(f"{device.udid}  {device.kind}, {device.os}, {device.state}")
    if not devices:
        options.say(
            "no device is connected; connect one by cable, unlock it, trust this Mac, and turn developer mode on",
            err=True,
        )
    options.next_step("fastvlm profile BUILD --device-udid UDID --team ID")


def show_profile(found: Profile, console: Console) -> None:
    """Prints a table of stages, contenders below each other, then what Core ML plans."""
    machine = found.machine
    parts = (machine.chip, machine.model, machine.system, f"{machine.cores} cores", f"{machine.memory_gb:g} GB")
    console.print(", ".join(part for part in parts if part))
    marks = _marks(found)
    for mark, result in zip(marks, found.results, strict=True):
        console.print(f"{mark + '  ' if len(marks) > 1 else ''}{result.contender.name}: {_asked(result.contender)}")
    console.print(_stages(found, marks))
    if len(marks) > 1:
        console.print("× A in brackets: the middle halves of the runs overlap, so no difference is shown")
    for result in found.results:
        if result.lacking:
            console.print(f"{result.contender.name}: the build has no {' and no '.join(result.lacking)} part")
    for result in found.results:
        for plan in result.plan or ():
            console.print(f"{result.contender.name}: {plan.package} {plan.function}: {_plan(plan)}")


def _asked(contender: Contender) -> str:
    """What a run of it is: builds of other sizes are not to be compared stage by stage."""
    side, prompt = contender.work.side, contender.work.prompt
    image = f"image {side}" if side else "no image"
    return f"{image}, prompt {prompt} of context {contender.build.context}" if prompt else image


def _plan(plan: FunctionPlan) -> str:
    """Which devices a function's ops and cost are on."""
    ops, cost = (
        ", ".join(f"{device} {share:.4g} %" for device, share in shares.items() if share) or "not told"
        for shares in (plan.op_percent, plan.cost_percent)
    )
    return f"ops {ops}; estimated cost {cost} (told of {plan.told} of {len(plan.ops)} ops)"


def _marks(found: Profile) -> list[str]:
    """A letter for each contender, as a table calls it: names are too long for its columns."""
    return [chr(ord("A") + place) if place < 26 else str(place + 1) for place in range(len(found.results))]


def _stages(found: Profile, marks: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("" if len(marks) == 1 else "of", no_wrap=True)
    for head in (f"median of {found.runs}", "quartiles", "first time", "" if len(marks) == 1 else "× A"):
        table.add_column(head, justify="right", no_wrap=True)
    ratios: list[dict[tuple[str, int | None], float]] = [{}, *found.ratios[1:]]
    for key in found.keys:
        title = ""
        for mark, result, times in zip(marks, found.results, ratios, strict=True):
            if stage := result.stage(*key):
                ratio = _ratio(times.get(key), stage, found.results[0].stage(*key))
                cells = _cells(stage, found.runs)
                table.add_row("" if title else stage.title, mark if len(marks) > 1 else "", *cells, ratio)
                title = stage.title
    for title, kind in (("peak memory", "peak"), ("memory before loading", "before_load")):
        for mark, result in zip(marks, found.results, strict=True):
            if result.memory:
                table.add_row(title, mark if len(marks) > 1 else "", f"{result.memory[kind] / 1e6:.0f} MB")
                title = ""
    return table


def _ratio(times: float | None, stage: Stage, first: Stage | None) -> str:
    """How often the first contender's median this one's is, in brackets where their middle halves overlap."""
    if times is None or first is None or first.spread is None or stage.spread is None:
        return ""
    return f"({times:.2f})" if stage.spread.overlaps(first.spread) else f"{times:.2f}"


def _cells(stage: Stage, runs: int) -> tuple[str, str, str]:
    """Median, quartiles and first time of one stage; of how many runs, where they are not as many as asked for."""
    first = "" if stage.first is None else _seconds(stage.first)
    if stage.spread is None:
        return "", "", first
    spread = stage.spread
    size, _ = _unit(spread.median)
    of = "" if spread.count == runs else f" (of {spread.count})"
    return f"{_seconds(spread.median)}{of}", f"{spread.q1 * size:.3g}–{spread.q3 * size:.3g}", first


def _unit(seconds: float) -> tuple[float, str]:
    return (1.0, "s") if seconds >= 1 else (1e3, "ms")


def _seconds(value: float) -> str:
    """Seconds or milliseconds, in three digits."""
    size, unit = _unit(value)
    return f"{value * size:.3g} {unit}"
