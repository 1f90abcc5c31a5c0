"""How a mixed compression looks on a terminal: a row per decoder layer, a column per linear layer.

197 rows of a 7B would say less: what matters is where along the depth, and in which part, precision went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from export.compression.table import Row, Table


def show_compression(table: Table, console: Console) -> None:
    """Prints each layer's scheme and noise in dB, then the average bits and the total noise."""
    from rich.table import Table as Grid

    rows = [(row, *_place(row.layer)) for row in table.rows]
    parts = list(dict.fromkeys(part for _, _, part in rows if part))
    cells: dict[str, dict[str, str]] = {}
    for row, place, part in rows:
        cells.setdefault(place, {})[part] = _cell(row)
    grid = Grid("layer", *(part.removesuffix("_proj") for part in parts), title="Schemes, and noise in dB")
    for place, found in cells.items():
        grid.add_row(place, *([found[""]] if "" in found else [found.get(part, "") for part in parts]))
    console.print(grid)
    console.print(f"{table.bits:.2f} bits a weight, scales and tables included; noise {table.decibel:.1f} dB in all")


def _place(layer: str) -> tuple[str, str]:
    """`layers.3.mlp.up_proj` -> ("3", "up_proj"); `lm_head` -> ("lm_head", "")."""
    words = layer.split(".")
    return (words[1], words[-1]) if words[0] == "layers" else (layer, "")


def _cell(row: Row) -> str:
    return f"{row.choice.scheme.name} {row.choice.decibel:.0f}"
