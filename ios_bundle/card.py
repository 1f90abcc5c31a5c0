"""MODEL_CARD.md and LICENSES/DERIVATIVE.txt: what this is, what it was made from, by which changes, what was measured.

Nothing is guessed: a licence that the checkpoint does not state is called unknown, a bundle without a verdict says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastvlm import __version__
from fastvlm.app_limits import APP_LIMIT
from fastvlm.build import Build
from fastvlm.hashes import FileHash
from fastvlm.licences import APPLE, APPLE_SENTENCE, UNKNOWN
from ios_bundle import layout
from ios_bundle.memory import memory_record
from ios_bundle.standing import Standing

_WEIGHTS = (".safetensors", ".bin", ".npz")


def notice(build: Build) -> str:
    """Returns LICENSES/DERIVATIVE.txt: the mark as a derivative, the changes, and the licence as far as it is known."""
    return "\n".join((f"This is a derivative of {_source(build)}.", "", *_changes(build), "", *_licence(build), ""))


def model_card(build: Build, name: str, files: Mapping[str, FileHash], standing: Standing) -> str:
    """Returns MODEL_CARD.md; `files` are those of the bundle without itself and metadata.json."""
    parts = (
        (f"# {name}", f"FastVLM for Core ML: a picture and a question in, text out. A derivative of {_source(build)}."),
        ("## Changes", *_changes(build)),
        ("## Licence", *_licence(build), f"Texts: `{layout.LICENSES}/`."),
        ("## Measured", *_measured(standing)),
        ("## Size", *_sizes(files)),
        ("## Memory", *_memory(build)),
        ("## Made from", *_provenance(build)),
        (
            "## Limits",
            "It answers as its checkpoint does, with the checkpoint's mistakes. Answers about people, health, law or "
            "safety are not to be relied on. Nothing here was measured on a device.",
        ),
    )
    return "\n".join("\n\n".join(part[:1]) + "\n\n" + "\n".join(part[1:]) + "\n" for part in parts)


def _source(build: Build) -> str:
    revision = build.manifest["source"].get("revision")
    return _plain(build.source_id) + (f" at revision {_plain(revision)}" if isinstance(revision, str) else "")


def _changes(build: Build) -> list[str]:
    manifest = build.manifest
    scheme = manifest["compression"].get("scheme") or "fp16"
    sides = " and ".join(map(str, build.image_sizes))
    lines = [
        f"- converted to Core ML packages by fastvlm {__version__}: a vision encoder for pictures of {sides} pixels a "
        f"side, a language model for a context of {build.context}",
        "- weights rounded to fp16" + ("" if scheme == "fp16" else f", then compressed: {_plain(str(scheme))}"),
        "- branches of training fused, batch norms and scales folded into neighbouring weights",
    ]
    if manifest.get("protection"):
        lines.append("- exact powers of two moved between weights, so that no value leaves fp16")
    if manifest.get("saturated"):
        lines.append("- weights beyond 65,504 clamped: " + ", ".join(map(_plain, sorted(manifest["saturated"]))))
    return [*lines, "- no training"]


def _licence(build: Build) -> list[str]:
    licence = str(build.manifest["licence"])
    if licence == APPLE:
        return [
            APPLE_SENTENCE,
            "For non-commercial research only; product development is excluded. It binds whatever is made from the "
            "weights, this bundle too, and asks for a copy of the agreement with it.",
        ]
    if licence == UNKNOWN:
        return ["Licence unknown: the checkpoint states none. Ask who published it before you use or pass this on."]
    return [f"Licence of the checkpoint, and of this derivative: {_plain(licence)}."]


def _measured(standing: Standing) -> Iterator[str]:
    if not standing.validated:
        yield f"Nothing: this bundle is unvalidated ({'; '.join(map(_plain, standing.reasons))})."
        return
    verdict = standing.verdict
    yield (
        f"These packages were executed (backend {_plain(verdict['backend'])}) and compared with PyTorch in float32 on "
        f"{verdict['pictures']} pictures, {verdict['steps']} greedy steps each; every limit holds."
    )
    yield ""
    yield "| rung | quantity | worst value | limit |"
    yield "|---|---|---|---|"
    for row in verdict["limits"]:
        sign = "≥" if row["bound"] == "min" else "≤"
        quantity = _plain(f"{row['quantity']}.{row['metric']}")
        yield f"| {_plain(str(row['rung']))} | {quantity} | {_number(row['value'])} | {sign} {_number(row['limit'])} |"


def _sizes(files: Mapping[str, FileHash]) -> Iterator[str]:
    size = sum(entry["bytes"] for entry in files.values())
    share = size / APP_LIMIT
    yield f"{size / 1e9:.3f} GB, {share:.0%} of the {APP_LIMIT / 1e9:.0f} GB that an app may have uncompressed."
    if share > 1:
        yield "Too large for an app: let the app download it."


def _memory(build: Build) -> Iterator[str]:
    record = memory_record(build)
    yield f"About {record['need_bytes'] / 1e9:.2f} GB while it answers ({record['basis']})."
    yield ""
    yield "| phones with | an app may use | with increased-memory-limit | fits |"
    yield "|---|---|---|---|"
    for row in record["device_classes"]:
        limits = (f"{row[key] / 1e9:.1f} GB" for key in ("app_bytes", "app_bytes_increased"))
        yield f"| {row['memory_gb']} GB ({row['measured_on']}) | {' | '.join(limits)} | {row['fits']} |"


def _provenance(build: Build) -> Iterator[str]:
    yield f"{_source(build)}, {_plain(str(build.manifest['source'].get('layout')))} layout; SHA-256 of its weights:"
    yield ""
    for name, entry in build.source_files.items():
        if name.endswith(_WEIGHTS) and isinstance(entry, Mapping):
            yield f"- `{_plain(name)}` `{_plain(str(entry.get('sha256')))}`"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else _plain(str(value))


def _plain(text: str) -> str:
    """A stranger's words on one line, without what Markdown or HTML would act on."""
    return re.sub(r"[^\w .,:;+@/()=-]", "_", " ".join(text.split()))[:200]
