"""`fastvlm lint`: would the Neural Engine take what ships? Exit code 1 below `--min-resident`."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm.commands import options
from fastvlm.errors import UsageError
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import is_onnx
from fastvlm.terminal import TerminalProgress, new_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from validation.lint.report import FunctionReport, Group, LintReport, Total

_KINDS = 8  # kinds of ops that a table shows
_MARKS = {"leaves": "leaves", "costs": "costs", "risks": "at risk", "edge": "edge"}


def _number(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A callback: NaN is below no bound and above none, so the range lets it through."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("it is no number, expected a percentage from 0 to 100", context, option)
    return value


@click.command(short_help="Check what of a package the Neural Engine would take.")
@click.argument("path", metavar="PACKAGE_OR_BUILD", callback=options.filled)
@options.device
@click.option(
    "--min-resident", type=click.FloatRange(0, 100), metavar="PERCENT", callback=_number,
    help="Exit with 1 where less of a function's floating-point work stays on the engine. Default: never.",
)  # fmt: skip
@options.as_json
@options.debug
def lint(path: str, device: str | None, min_resident: float | None, as_json: bool) -> None:
    """Say op by op what of an .mlpackage, or of a whole build, the Neural Engine would take, by rules with sources.

    Nothing is executed and nothing was tried on a device: rules are what Apple says and others measured (docs/ane.md).
    An op that leaves goes to the GPU or the CPU; what only costs or is at risk stays, and is shown apart.
    """
    if device is not None:
        from fastvlm.devices import device as named

        named(device)  # before the seconds that the import below takes
    progress = TerminalProgress(transient=True)
    if os.path.isfile(Path(path) / MANIFEST) and is_onnx(path):
        raise UsageError(f"lint judges Core ML packages, and {path} holds ONNX files; export with --format coreml")
    with progress.stage("Loading libraries"):
        from validation.lint.checking import lint as check

    report = check(path, device)
    if as_json:
        options.show_json(report.as_json())
    else:
        show_report(report, new_console())
    least = report.resident_percent
    if min_resident is not None and least < min_resident:
        options.say(f"Error: {_percent(least)} stays, at least {min_resident:g} % was asked for", err=True)
        options.next_step(f"fastvlm lint {shlex.quote(path)} --json, for every op that leaves")
        raise click.exceptions.Exit(1)
    built = os.path.isfile(Path(path) / MANIFEST)
    options.next_step(options.validation_of(path) if built else f"fastvlm inspect {shlex.quote(path)}")


def show_report(report: LintReport, console: Console) -> None:
    """Prints, function by function, what stays, what leaves with the rule that says so, costs and risks."""
    from validation.lint.report import rule_as_json

    judged = report.device or "every device of the table"
    console.print(f"{report.path} on {judged}, judged by the limits of engine {report.engine}")
    shown: dict[tuple[FunctionReport, ...], str] = {}
    for package in report.packages:
        sizes = f"program {_units(package.program_bytes, 'B')}, weights {_units(package.weight_bytes, 'B')}"
        console.print()
        console.print(f"{package.name}: {package.system} and later, {sizes}")
        if package.functions in shown:  # the middle of a chain
            console.print()
            console.print(f"  op for op as {shown[package.functions]}")
            continue
        shown[package.functions] = package.name
        for function in package.functions:
            _show_function(function, console)
    _show_totals(report, console)
    if broken := report.broken_rules():
        console.print()
        console.print("what the rules say, and how sure they are")
        for identifier in broken:
            rule = rule_as_json(identifier)
            sources = ", ".join(source["title"] for source in rule["sources"])
            console.print(f"  {identifier} ({rule['verdict']}, {rule['confidence']}): {rule['says']} [{sources}]")


def _show_totals(report: LintReport, console: Console) -> None:
    """What a call of each function comes to where a chain of packages has it."""
    for total in report.totals:
        if total.packages > 1:
            console.print()
            console.print(f"{total.name} over {total.packages} packages: {_share(total)}")


def _share(of: FunctionReport | Total) -> str:
    flops, moved = of.flops, of.bytes
    return (
        f"{_percent(flops.percent)} of {_units(flops.total - flops.edge, 'FLOP')} and {_percent(moved.percent)} of "
        f"{_units(moved.total - moved.edge, 'B')} stay"
    )


def _show_function(function: FunctionReport, console: Console) -> None:
    console.print()
    console.print(f"  {function.name} ({function.opset}): {_share(function)}")
    for broken in function.whole:
        console.print(f"   leaves as a whole: {broken.rule}: {broken.found}")
    for head, detail in _rows(function):
        console.print(f"   {head}")
        console.print(f"      {detail}")
    if function.groups or function.leaving:
        console.print()
    kinds = _kinds_table()
    for kind in function.kinds[:_KINDS]:
        leave = str(kind.leaving or "")
        kinds.add_row(kind.op, str(kind.count), leave, _units(kind.flops, ""), _units(kind.bytes, "B"))
    console.print(kinds)
    if rest := function.kinds[_KINDS:]:
        console.print("   and " + ", ".join(f"{kind.op} {kind.count}" for kind in rest))


def _kinds_table() -> Table:
    from rich.table import Column, Table

    heads = ("op", "ops", "leave", "FLOP", "bytes")
    return Table(*(Column(head, no_wrap=True) for head in heads), box=None, padding=(0, 1, 0, 2))


def _rows(function: FunctionReport) -> list[tuple[str, str]]:
    """For each rule how much it takes, and what was found by kind of op; an op stands in each rule that it breaks."""
    gathered: dict[tuple[str, str], dict[str, list[Group]]] = {}
    for group in function.by_rule():
        gathered.setdefault((group.verdict, group.rule), {}).setdefault(group.op, []).append(group)
    rows: list[tuple[str, str]] = []
    for (verdict, rule), kinds in gathered.items():
        groups = [group for found in kinds.values() for group in found]
        count, flops, moved, extra = (
            sum(getattr(group, what) for group in groups) for what in ("count", "flops", "bytes", "extra_bytes")
        )
        more = f", {_units(extra, 'B')} more than needed" if extra else ""
        named = ", ".join(f"{kind} {sum(group.count for group in found)}" for kind, found in kinds.items())
        head = f"{_MARKS[verdict]:<8} {rule:<16} {_ops(count)}, {_units(flops, 'FLOP')}, {_units(moved, 'B')}{more}"
        rows.append((head, f"{named}: {groups[0].found}"))
    return rows


def _ops(count: int) -> str:
    return "1 op" if count == 1 else f"{count} ops"


def _percent(share: float) -> str:
    """A percentage that says 100 only where nothing is missing."""
    from validation.lint.report import shown

    return f"{shown(share):.6g} %"


def _units(count: int, unit: str) -> str:
    """A count for a reader, in powers of ten."""
    for sign, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {sign}{unit}".strip()
    return f"{count} {unit}".strip()
