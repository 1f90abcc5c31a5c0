"""How a mixed compression looks on a terminal: a row per decoder layer, a column per linear layer.

The 197 rows of a 7B would say less: what matters is where along the depth, and in which part, precision went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from export.compression.table import Row, Table

LAYERS = "layers."


def show_compression(table: Table, console: Console) -> None:
    """Prints each layer's scheme and noise in dB, what stands outside the layers, average bits and total noise."""
    from rich.box import SIMPLE
    from rich.table import Table as Grid

    cells: dict[str, dict[str, str]] = {}
    for row in table.rows:
        if row.layer.startswith(LAYERS):
            index, _, linear = row.layer.removeprefix(LAYERS).partition(".")
            cells.setdefault(index, {})[linear.rpartition(".")[2].removesuffix("_proj")] = _cell(row)
    linears = list(dict.fromkeys(linear for found in cells.values() for linear in found))
    grid = Grid("layer", *linears, title="Schemes, and noise in dB", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, found in cells.items():
        grid.add_row(index, *(found.get(linear, "") for linear in linears))
    console.print(grid)
    for row in table.rows:
        if not row.layer.startswith(LAYERS):
            console.print(f"{row.layer}: {_cell(row)} dB")
    console.print(f"{table.bits:.2f} bits a weight, scales and tables included; noise {table.decibel:.1f} dB in all")


def _cell(row: Row) -> str:
    return f"{row.choice.scheme.name} {row.choice.decibel:.0f}"
