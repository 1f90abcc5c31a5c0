"""Where the time of an answer goes: as the validation took it, or as `fastvlm profile` measured it.

Both become the same rows, medians in seconds by stage. What a validation took is no benchmark and says so
(`validation.stopwatch`); a profile names its machine, how often it ran, and where Core ML was allowed to run. Of a
profile those contenders count that ran the report's own build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any, TypeGuard

from fastvlm.errors import UsageError
from validation.html_report.provenance import text
from validation.html_report.schema import LARGEST
from validation.limits import storable

VALIDATION, PROFILE = "validation", "profile"
MACHINE = ("chip", "model", "system")


def taken(seconds: Mapping[str, list[float]], backend: str) -> dict[str, Any] | None:
    """Returns the medians of a validation's own calls; None where it timed none (layer by layer)."""
    stages = [_row(stage, None, median(values), len(values)) for stage, values in seconds.items() if values]
    if not stages:
        return None
    contender = {"name": backend, "compute_units": None, "stages": stages, "peak_bytes": None}
    return {"measured_by": VALIDATION, "machine": None, "load_average": None, "contenders": [contender]}


def with_profile(document: dict[str, Any], profile: Any, named: str) -> dict[str, Any]:
    """Returns a document with the times of a profile of its own build; UsageError as `measured`."""
    return {**document, "times": measured(profile, document["build"]["manifest_sha256"], named)}


def measured(profile: Any, manifest_sha256: str, named: str) -> dict[str, Any]:
    """Returns the medians of a profile's contenders that ran the build with that manifest.

    `profile` is what `fastvlm profile --json` printed, `named` its file. Raises UsageError where it is no profile, or
    of other builds alone.
    """
    contenders = profile.get("contenders") if isinstance(profile, dict) else None
    if not isinstance(contenders, list):
        raise UsageError(f"{named} is no profile; make one with `fastvlm profile BUILD --json > profile.json`")
    own = [each for each in contenders if _manifest(each) == manifest_sha256]
    if not own:
        found = ", ".join(sorted({text(_manifest(each))[:12] for each in contenders})) or "no build at all"
        raise UsageError(
            f"{named} is of {found}, and this report is of the manifest {manifest_sha256[:12]}; profile it"
        )
    load = profile.get("load_average")
    return {
        "measured_by": PROFILE, "machine": _machine(profile),
        "load_average": float(load) if isinstance(load, (int, float)) and 0 <= load < LARGEST else None,
        "contenders": list(map(_contender, own)),
    }  # fmt: skip


def _row(stage: str, position: int | None, seconds: float, count: int) -> dict[str, Any]:
    return {"stage": stage, "position": position, "median": storable(seconds), "count": count}


def _manifest(contender: Any) -> Any:
    build = contender.get("build") if isinstance(contender, dict) else None
    return build.get("manifest_sha256") if isinstance(build, dict) else None


def _machine(profile: Mapping[str, Any]) -> str | None:
    machine = profile.get("machine")
    found = [text(machine[name]) for name in MACHINE if machine.get(name)] if isinstance(machine, dict) else []
    return ", ".join(found) or None


def _contender(row: Mapping[str, Any]) -> dict[str, Any]:
    memory = row.get("memory_bytes")
    peak = memory.get("peak") if isinstance(memory, dict) else None
    stages, units = row.get("stages"), row.get("compute_units")
    return {
        "name": text(row.get("name")),
        "compute_units": text(units) if units else None,
        "stages": [*_stages(stages if isinstance(stages, list) else [])],
        "peak_bytes": peak if _is_count(peak) else None,
    }


def _stages(rows: list[Any]) -> Iterator[dict[str, Any]]:
    for row in rows:
        runs = row.get("runs") if isinstance(row, dict) else None
        seconds, count = (runs.get("median"), runs.get("count")) if isinstance(runs, dict) else (None, None)
        if isinstance(seconds, (int, float)) and 0 <= seconds < LARGEST and _is_count(count):
            position = row.get("position")
            yield _row(text(row.get("stage")), position if _is_count(position) else None, float(seconds), count)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
