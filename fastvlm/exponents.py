"""How the manifest's record of exponents is told: what is stored divided by which power of two (docs/numerics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def exponents_in_words(record: Mapping[str, Any]) -> str:
    """Returns `the residual stream / 2^2, MLPs of layers 11, 12 / 2^1, network.9 / 2^5`; "" where there are none.

    `record`: the manifest's `protection`. What stands there otherwise than an export writes it is left out.
    """
    names = {"residual": "the residual stream", "scores": "attention scores"}
    parts = [f"{text} / 2^{record[name]}" for name, text in names.items() if isinstance(record.get(name), int)]
    for name, text in (("values", "values"), ("mlp", "MLPs")):
        parts += [f"{text} of layers {', '.join(layers)} / 2^{e}" for e, layers in _by_exponent(record.get(name))]
    sites = record.get("encoder")
    return ", ".join([*parts, *(f"{site} / 2^{e}" for site, e in (sites.items() if isinstance(sites, dict) else ()))])


def protection_in_words(record: object) -> str:
    """Returns what `fastvlm inspect` says of a build: whether its checkpoint was scanned, and what is scaled."""
    if not isinstance(record, dict) or not record.get("scanned"):
        return "never scanned: nothing is known of its range"
    sides = ", ".join(map(str, record["scanned"])) if isinstance(record["scanned"], list) else "?"
    return f"scanned at {sides} pixels; {exponents_in_words(record) or 'everything fits as it is'}"


def _by_exponent(rows: object) -> list[tuple[int, list[str]]]:
    """The layers that have each exponent, of a list by layer."""
    found: dict[int, list[str]] = {}
    for layer, exponent in enumerate(rows if isinstance(rows, list) else ()):
        if exponent:
            found.setdefault(exponent, []).append(str(layer))
    return sorted(found.items())
