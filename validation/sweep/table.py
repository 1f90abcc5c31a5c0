"""The table of a sweep: a flat row for each case, as JSON and, where asked for, as Parquet.

Latency and memory are estimates for one device (`validation.fit`), everything else was measured. A case without a
result has its error, and null everywhere else: it is in the table, and on no front.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastvlm import __version__
from fastvlm.errors import MissingDependency
from fastvlm.manifest import dump
from fastvlm.publish import replace_file
from validation.sweep.front import family, front, nearest, rightest, task
from validation.sweep.rows import Row
from validation.sweep.spec import Spec

SCHEMA = "0.1"
JSON, PARQUET = "table.json", "table.parquet"
COLUMNS: dict[str, str] = {  # name -> Arrow's name of the type
    "case": "string", "build": "string", "checkpoint": "string", "image_size": "int64", "scheme": "string",
    "target": "string", "context": "int64", "images": "string", "status": "string", "error": "string",
    "pictures": "int64", "steps": "int64", "bytes": "int64", "encoder_bytes": "int64", "language_bytes": "int64",
    "embeddings_bytes": "int64", "device": "string", "first_token": "float64", "tokens_per_second": "float64",
    "memory": "int64", "fits_memory": "string", "fits_app": "bool", "kl": "float64", "kl_of": "string",
    "questions": "int64", "agree": "int64", "answered": "int64", "build_right": "int64", "reference_right": "int64",
    "wrong": "float64", "front": "bool", "task_front": "bool", "missed": "string", "lacking": "string",
    "notes": "string",
    "export_seconds": "float64", "validate_seconds": "float64", "fastvlm_version": "string",
}  # fmt: skip


def check_parquet() -> None:
    """Raises MissingDependency where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingDependency(
            "--parquet needs pyarrow, which is not installed; pip install 'fastvlm-coreml[parquet]', or leave "
            "--parquet out: the same table is written as JSON"
        )


def tabled(rows: Sequence[Row], device: str) -> list[Row]:
    """Returns a flat row of `COLUMNS` for each, with the estimates for `device` and what is on which front."""
    flat = [_flat(row, device) for row in rows]
    for name, found in (("front", front(flat, nearest, family)), ("task_front", front(flat, rightest, task))):
        for row, is_on in zip(flat, found, strict=True):
            row[name] = is_on
    return [{name: row.get(name) for name in COLUMNS} for row in flat]


def _flat(row: Row, device: str) -> Row:
    estimated: Row = next((each for each in row.get("estimates", ()) if device in each["devices"]), {})
    flat = {**row, **{name: value for name, value in estimated.items() if name != "devices"}, "device": device}
    if row.get("answered"):
        flat["wrong"] = 1 - row["build_right"] / row["answered"]
    for name, between in (("missed", ", "), ("lacking", ", "), ("notes", "; ")):
        flat[name] = between.join(map(str, row.get(name, ())))
    return flat


def document(spec: Spec, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the JSON document of flat `rows`: what was asked for, and a row for each case."""
    return {"schema": SCHEMA, "fastvlm_version": __version__, "spec": asdict(spec), "rows": list(rows)}


def write_tables(place: Path, content: dict[str, Any], parquet: bool) -> list[Path]:
    """Writes a `document` into a sweep's folder, as JSON and if asked for as Parquet; returns the files."""
    written = [place / JSON]
    replace_file(written[0], dump(content))
    if parquet:
        written.append(place / PARQUET)
        replace_file(written[1], _parquet(content))
    return written


def _parquet(content: dict[str, Any]) -> bytes:
    """The rows, with everything else of the document as JSON in the file's metadata."""
    import pyarrow as arrow
    from pyarrow import parquet

    head = {name: value for name, value in content.items() if name != "rows"}
    fields = [arrow.field(name, arrow.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    schema = arrow.schema(fields, metadata={"fastvlm_sweep": json.dumps(head)})
    written = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(content["rows"], schema=schema), written)
    return written.getvalue()
