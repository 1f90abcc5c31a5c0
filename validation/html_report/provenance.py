"""What a build is and where it came from, as its manifest says, and the sizes of its files.

A manifest may come from anywhere: what is of another type than expected is shown as text, cut short.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastvlm.build import ONNX, Build
from validation.pair import Pair
from validation.verdict import Verdict

LONGEST = 2000  # characters of any text of a manifest
HALF = 2  # bytes of an fp16 number
DATA = ".data"  # behind the name of an ONNX file: its weights


def about(pair: Pair, verdict: Verdict) -> dict[str, Any]:
    """Returns the source, licence, compression, shapes and hashes of a build."""
    build, guard, manifest = pair.build, pair.protection, pair.build.manifest
    protected = any((guard.encoder, guard.residual, guard.scores, any(guard.mlp), any(guard.values)))
    source = manifest["source"]
    return {
        "format": build.format,
        "source": text(build.source_id),
        "revision": _optional(source.get("revision")),
        "layout": _optional(source.get("layout")),
        "options": [{"option": name, "value": text(value)} for name, value in build.source_options.items()],
        "licence": text(manifest["licence"]),
        "licence_text": text(manifest.get("licence_text", manifest["licence"])),
        "made_by": text(manifest["fastvlm_version"]),
        "manifest_schema": text(manifest["schema"]),
        "manifest_sha256": verdict.manifest_sha256,
        "compression": _compression(manifest["compression"]),
        "image_sizes": list(build.image_sizes),
        "image_rule": build.image_rule,
        "template": text(build.prompt.get("template", "")) if build.language else None,
        "context": build.context if build.language else None,
        "query_length": build.query if build.language and build.format != ONNX else None,
        "target": build.target if build.language else None,
        "purpose": build.purpose,
        "assumed": _lines(manifest.get("assumed")),
        "protected": protected,
        "saturated": len(manifest["saturated"]) if isinstance(manifest.get("saturated"), dict) else 0,
        "reference_files": [
            {"file": text(name), "sha256": text(digest), "differs": name in verdict.reference.differing}
            for name, digest in sorted(verdict.reference.sha256.items())
        ],
    }


def files(build: Build, cache: int | None = None) -> dict[str, Any]:
    """Returns every file of a build with bytes and SHA-256; packages, or ONNX files, and the state with theirs.

    `cache`: the bytes of an ONNX build's keys and values, which its manifest does not vouch for.
    """
    listed: Mapping[str, Any] = build.manifest["files"]
    rows = [{"file": name, "bytes": row["bytes"], "sha256": row["sha256"]} for name, row in sorted(listed.items())]
    encoders = build.encoders.values() if build.format == ONNX else filter(None, [build.encoder])
    packages = [*encoders, *(stage.package for stage in build.language)]
    return {
        "total_bytes": sum(row["bytes"] for row in rows),
        "state_bytes": _state_bytes(build) if cache is None else cache,
        "packages": [_package(path.name, rows) for path in packages],
        "files": rows,
    }


def placement(found: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]] | None:
    """Returns how many nodes of each ONNX file ran on which of onnxruntime's providers; None where none did."""
    rows = [
        {"file": file, "provider": provider, "nodes": count}
        for file, counts in found.items()
        for provider, count in counts.items()
    ]
    return rows or None


def _package(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A package's files, or an ONNX file and the data of its own name (which encoders of several sizes share)."""
    own = [row for row in rows if row["file"].startswith(f"{name}/") or row["file"] in (name, name + DATA)]
    weights = sum(row["bytes"] for row in own if row["file"].endswith((".bin", DATA)))
    return {"package": name, "bytes": sum(row["bytes"] for row in own), "weight_bytes": weights}


def _state_bytes(build: Build) -> int:
    """What the KV caches of all packages take; one without a shape was refused before (`counterparts.decoder`)."""
    entries = build.manifest["functions"].get("language") if build.language else None
    listed = [entries] if isinstance(entries, dict) else entries or []
    return HALF * sum(int(math.prod(entry["state"]["shape"])) for entry in listed if "state" in entry)


def _compression(record: Mapping[str, Any]) -> dict[str, Any]:
    """The scheme, what the embedding table is in, and how many layers of each part are in which scheme."""
    layers = record.get("layers")
    named = layers.items() if isinstance(layers, dict) else ()
    counted = Counter((str(name).partition(".")[0], text(scheme)) for name, scheme in named)
    return {
        "scheme": text(record.get("scheme", "fp16")),
        "embeddings": text(record.get("embeddings") or "fp16"),
        "layers": [
            {"part": part, "scheme": scheme, "count": count} for (part, scheme), count in sorted(counted.items())
        ],
    }


def text(value: object) -> str:
    """Returns a value as text that every file can hold: no half of a surrogate pair, not longer than `LONGEST`."""
    return str(value)[:LONGEST].encode("utf-8", "replace").decode()


def _optional(value: object) -> str | None:
    return None if value is None else text(value)


def _lines(value: object) -> list[str]:
    return [text(line) for line in value] if isinstance(value, list) else []
