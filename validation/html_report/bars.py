"""The rows of a report that are drawn as bars one behind the other: stages of an answer, parts of a build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastvlm.app_limits import APP_LIMIT
from validation.html_report.words import as_float

KINDS = (("phone", "Phones"), ("tablet", "Tablets"), ("mac", "Macs"))
FITS = {  # what `fit` says: in words, and which badge
    "yes": ("fits", "good"), "with increased-memory-limit": ("fits with increased-memory-limit", "tie"),
    "no": ("does not fit", "bad"), "unknown": ("its limit is unknown", "tie"),
}  # fmt: skip
FIRST, DECODE, WHOLE = "first_token", "decode", "to_first_token"
STAGES = (
    ("preprocess", "Picture", "to a square of pixels"),
    ("encode", "Encoder", "pixels to image tokens"),
    ("prefill", "Prefill", "the prompt but its last position"),
    ("first_token", "First token", "the last position of the prompt"),
    ("decode", "Each further token", "one step of decode, behind the first"),
)


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole > 0 else 0.0


def waterfalls(times: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns for each contender its stages with where each bar begins and ends, in percent, and the sums.

    All contenders are on the scale of the slowest. Stages that are no part of an answer (loading) come without a bar.
    """
    contenders = times["contenders"] if times else []
    longest = max((sum(map(_seconds, _answer(each))) for each in contenders), default=0.0)
    return [_waterfall(each, longest) for each in contenders]


def _seconds(row: dict[str, Any]) -> float:
    return as_float(row["median"])


def _answer(contender: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of an answer in their order, of further tokens the first row: the shortest context."""
    known = {name: [row for row in contender["stages"] if row["stage"] == name] for name, _, _ in STAGES}
    return [rows[0] for rows in known.values() if rows]


def _waterfall(contender: dict[str, Any], longest: float) -> dict[str, Any]:
    answer = _answer(contender)
    before = sum(_seconds(row) for row in answer if row["stage"] != DECODE)
    token = next((_seconds(row) for row in answer if row["stage"] == DECODE), None)
    return {
        "name": contender["name"],
        "units": contender["compute_units"],
        "total": before,
        "until": _until({row["stage"] for row in answer}),
        "speed": 1 / token if token else None,
        "rows": [*_bars(answer, longest)],
        "others": [*_others([row for row in contender["stages"] if row not in answer])],
        "peak": contender["peak_bytes"],
    }


def _until(stages: set[str]) -> str | None:
    """What the stages before further tokens lead to, in words; None where there are none."""
    if FIRST in stages:
        return (
            "to the first token" if "encode" in stages else "to the first token, of a picture that is encoded already"
        )
    return "in all, without a first token" if stages - {DECODE} else None


def _bars(answer: list[dict[str, Any]], longest: float) -> Iterator[dict[str, Any]]:
    start, words = 0.0, {name: (head, note) for name, head, note in STAGES}
    for row in answer:
        head, note = words[row["stage"]]
        yield {
            "name": head, "note": f"{note}; median of {row['count']}", "seconds": row["median"],
            "start": _percent(start, longest), "share": max(_percent(_seconds(row), longest), 0.4),
            "kind": "after" if row["stage"] == DECODE else "filled",
        }  # fmt: skip
        start += _seconds(row)


def _others(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Further rows: loading, and tokens at longer contexts."""
    for row in rows:
        if row["stage"] != WHOLE:
            name = row["stage"].replace("_", " ")
            at = "" if row["position"] is None else f" at position {row['position']}"
            yield {"name": f"{name}{at}", "seconds": row["median"], "count": row["count"]}


def sizes(held: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts of a build, the largest first, beside what an app may be."""
    parts = [
        (row["package"], f"weights {_percent(row['weight_bytes'], row['bytes']):.0f} %", row["bytes"])
        for row in held["packages"]
    ]
    names = tuple(f"{row['package']}/" for row in held["packages"])
    tables = [row for row in held["files"] if row["file"].endswith(".bin") and not row["file"].startswith(names)]
    parts += [(row["file"], "token embeddings, mapped and read row by row", row["bytes"]) for row in tables]
    rest = held["total_bytes"] - sum(part[2] for part in parts)
    parts.sort(key=lambda part: -part[2])
    parts += [("everything else", "tokenizer, prompts", rest)] if rest > 0 else []
    rows, start = [], 0
    for name, note, count in parts:
        share = max(_percent(count, held["total_bytes"]), 0.4)
        rows.append(
            {"name": name, "note": note, "bytes": count, "start": _percent(start, held["total_bytes"]), "share": share}
        )
        start += count
    total = held["total_bytes"]
    return {"total": total, "limit": APP_LIMIT, "share": total / APP_LIMIT, "over": total > APP_LIMIT, "rows": rows}


def devices(found: dict[str, Any] | None) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns phones, tablets and Macs, each row with what it needs beside what an app may have there, in percent."""
    rows = found["rows"] if found else []
    return [(head, list(map(_device, own))) for kind, head in KINDS if (own := [r for r in rows if r["kind"] == kind])]


def _device(row: dict[str, Any]) -> dict[str, Any]:
    most = row["increased_bytes"] or row["limit_bytes"]
    word, badge = FITS[row["fits"]]
    if row["fits"] != "no" and not row["leaves_room"]:
        word, badge = "barely, the app itself has no room", "bad"
    elif not row["fits_app"]:
        word, badge = f"{word}, as a download: too large for an app", "tie"
    share = None if not most else min(_percent(row["need_bytes"], most), 100.0)
    return {**row, "word": word, "badge": badge, "share": share, "most": most}
