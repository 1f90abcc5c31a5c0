"""How compression looks on a terminal: a row per decoder layer and a column per linear layer for `mixed`, else a line.

The 197 rows of a 7B would say less: what matters is where along the depth, and in which part, precision went.
It reads the manifest's record of the compression, nothing of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LAYERS = "layers."


def show_compression(record: Mapping[str, Any], console: Console) -> None:
    """Prints each layer's scheme and noise in dB, what stands outside the layers, average bits and total noise.

    record: the manifest's `compression.sensitivity`.
    """
    from rich.box import SIMPLE
    from rich.table import Table as Grid

    cells: dict[str, dict[str, str]] = {}
    for row in record["layers"]:
        if row["layer"].startswith(LAYERS):
            index, _, linear = row["layer"].removeprefix(LAYERS).partition(".")
            cells.setdefault(index, {})[linear.rpartition(".")[2].removesuffix("_proj")] = _cell(row)
    linears = list(dict.fromkeys(linear for found in cells.values() for linear in found))
    grid = Grid("layer", *linears, title="Schemes, and noise in dB", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, found in cells.items():
        grid.add_row(index, *(found.get(linear, "") for linear in linears))
    if cells:
        console.print(grid)
    for row in record["layers"]:
        if not row["layer"].startswith(LAYERS):
            console.print(f"{row['layer']}: {_cell(row)} dB")
    bits, noise = record["bits"], record["noise_db"]
    sums = f"{bits:.2f} bits a weight, scales and palettes included, and noise {noise:.1f} dB"
    console.print(f"{sums} over the layers left to mixed")


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['scheme']} {row['noise_db'][row['scheme']]:.0f}"


def in_words(record: Mapping[str, Any]) -> str:
    """Returns a manifest's `compression` in one line: `int8: language 169 int8, encoder fp16, embeddings int8`."""
    name = str(record.get("scheme"))
    parts = [f"{part} {_counts(record[part])}" for part in ("language", "encoder", "embeddings") if part in record]
    return f"{name}: {', '.join(parts)}" if parts else name


def _counts(found: object) -> str:
    """How many layers have which scheme; whatever else stands there is shown as it is."""
    if not isinstance(found, dict):
        return str(found)
    return " + ".join(f"{count} {scheme}" for scheme, count in found.items()) or "fp16"
