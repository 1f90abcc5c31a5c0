"""What `paper.py` prints and writes: claims beside what was found here, with remarks; below them the measurements."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from validation.machine import this_machine

Cell = str | float | int | None
WIDE = 116  # columns of a line


@dataclass(frozen=True)
class Claim:
    """One thing that the paper says, and the same here, both in `unit`; None where there is no such figure."""

    text: str
    paper: float | None
    here: float | None
    unit: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Measurements behind the claims: a title, columns, and rows as long as the columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Section:
    """What one sub-command found. notes: how it was measured."""

    name: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def surroundings() -> dict[str, Any]:
    """Where this ran: machine, threads of torch, its version, load of the last minute when it began."""
    return {
        "machine": this_machine().as_json(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def place(here: dict[str, Any]) -> str:
    """The same in one line."""
    machine = here["machine"]
    return (
        f"{machine['chip']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']} "
        f"{machine['architecture']}; threads: {here['threads']}, torch {here['torch']}, load {here['load']}"
    )


def number(value: Cell) -> str:
    """A cell as it is printed: three digits of what is measured, all of what is counted."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"
    return f"{value:,}" if isinstance(value, int) else value


def in_text(section: Section, here: dict[str, Any]) -> str:
    """A section as text, machine and threads in its first line."""
    lines = [f"== {section.name}: {place(here)}", ""]
    cells = [
        (claim.text, with_unit(claim.paper, claim.unit), with_unit(claim.here, claim.unit)) for claim in section.claims
    ]
    head, *rows = _columns([("claim", "paper", "here"), *cells])
    lines.append(head)
    for claim, row in zip(section.claims, rows, strict=True):
        lines.append(row)
        for remark in claim.remarks:
            lines += textwrap.wrap(remark, WIDE, initial_indent="    · ", subsequent_indent="      ")
    for table in section.tables:
        lines += ["", table.title]
        lines += _columns([table.columns, *(tuple(number(cell) for cell in row) for row in table.rows)])
    for note in section.notes:
        lines += ["", *textwrap.wrap(note, WIDE)]
    return "\n".join([*lines, ""])


def with_unit(value: float | None, unit: str) -> str:
    """A claim's figure: "85×", "7,371 tokens"."""
    return number(value) if value is None else number(value) + ("×" if unit == "×" else f" {unit}")


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(["  " + row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def as_json(sections: Sequence[Section], here: dict[str, Any]) -> dict[str, Any]:
    """All of it as plain data."""
    return {"surroundings": here, "sections": [asdict(section) for section in sections]}
