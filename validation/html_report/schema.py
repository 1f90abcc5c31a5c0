"""What a report's document holds: the one list of its fields, their types, and the check of a document by it.

A report may have been sent by anybody, so that whatever reads one checks it first: a page is only made of a document
whose every field has its type. Fields that nobody knows are ignored; a newer MAJOR version is refused by its number.
Numbers are JSON's, and "inf", "-inf" or "nan" in words, which JSON cannot say. Probabilities are of both tokens, by the
side that says them. docs/report.md explains each field; a test holds that page to this list.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastvlm.build import FORMATS
from fastvlm.errors import ReportError
from validation.html_report.pictures import TYPES

SCHEMA, TOOL = "0.2", "fastvlm"  # 0.2: builds of ONNX files, `build.format` and `placement`
NOT_FINITE = ("inf", "-inf", "nan")
LARGEST = 1e300  # JSON has whole numbers that no float holds
LONGEST = 1e9  # seconds, thirty years: what a page can draw
LISTED = 10  # problems that one error names


@dataclass(frozen=True)
class Kind:
    """A type that a field may have, in words, and whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Maybe:
    """A field that may be null."""

    kind: Any


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in NOT_FINITE
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_seconds(value: Any) -> bool:
    return not isinstance(value, str) and _is_number(value) and 0 <= value <= LONGEST


def _is_chance(value: Any) -> bool:
    return value == "nan" or (not isinstance(value, str) and _is_number(value) and 0 <= value <= 1)


def _is_base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        return False


def _one_of(*words: str) -> Kind:
    return Kind(" or ".join(words), lambda value: isinstance(value, str) and value in words)


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", _is_count)
NUMBER = Kind("a number", _is_number)
SECONDS = Kind("seconds, 0 at least", _is_seconds)
CHANCE = Kind("a probability from 0 to 1", _is_chance)
BASE64 = Kind("base64", _is_base64)
PART = _one_of("encoder", "language")

_CHANCES = Maybe({"coreml": CHANCE, "pytorch": CHANCE})  # of the package's token, of the reference's
_TOKEN = {"id": COUNT, "text": TEXT, "probability": _CHANCES}
_STEP = {
    "pytorch": _TOKEN, "coreml": _TOKEN, "margin": NUMBER, "logit_error": NUMBER, "kl": NUMBER, "tie": FLAG,
}  # fmt: skip
_SAID = {"text": TEXT, "right": Maybe(FLAG)}
_OP = {"part": PART, "package": TEXT, "function": TEXT, "block": TEXT, "op": TEXT, "name": TEXT, "peak": NUMBER}
FIELDS: dict[str, Any] = {
    "schema": TEXT,
    "tool": {"name": _one_of(TOOL), "version": TEXT},
    "verdict": _one_of("passed", "failed", "compared"),
    "holds": FLAG,
    "backend": TEXT,
    "steps": COUNT,
    "compared_in_full": COUNT,
    "score": Maybe(
        {"count": COUNT, "in_full": COUNT, "agree": COUNT, "answered": COUNT, "build_right": COUNT,
         "reference_right": COUNT}
    ),
    "build": {
        "format": Maybe(_one_of(*FORMATS)),
        "source": TEXT, "revision": Maybe(TEXT), "layout": Maybe(TEXT), "options": [{"option": TEXT, "value": TEXT}],
        "licence": TEXT, "licence_text": TEXT, "made_by": TEXT, "manifest_schema": TEXT, "manifest_sha256": TEXT,
        "compression": {
            "scheme": TEXT, "embeddings": TEXT, "layers": [{"part": TEXT, "scheme": TEXT, "count": COUNT}],
        },
        "image_sizes": [COUNT], "image_rule": TEXT, "template": Maybe(TEXT), "context": Maybe(COUNT),
        "query_length": Maybe(COUNT), "target": Maybe(TEXT), "purpose": Maybe(TEXT), "assumed": [TEXT],
        "protected": FLAG, "saturated": COUNT, "reference_files": [{"file": TEXT, "sha256": TEXT, "differs": FLAG}],
    },
    "pictures": [
        {
            "name": TEXT, "width": Maybe(COUNT), "height": Maybe(COUNT), "type": Maybe(_one_of(*TYPES)),
            "data": Maybe(BASE64),
        }
    ],
    "questions": [
        {
            "picture": COUNT, "name": TEXT, "prompt": Maybe(TEXT), "expected": Maybe(TEXT),
            "answers": Maybe({"coreml": _SAID, "pytorch": _SAID, "same": FLAG}),
            "encoder": [{"size": COUNT, "psnr_db": NUMBER, "snr_db": NUMBER, "rounded_snr_db": NUMBER}],
            "transcript": Maybe({"from": _one_of("pixels", "reference"), "answer_steps": COUNT, "steps": [_STEP]}),
        }
    ],
    "differing_steps": [{"of": _one_of("language", "answer"), "sample": TEXT, "step": COUNT, **_STEP}],
    "blocks": [
        {
            "part": PART, "function": TEXT, "limit_db": NUMBER,
            "blocks": [{"block": TEXT, "snr_db": NUMBER, "rounded_snr_db": NUMBER, "loss_db": NUMBER}],
        }
    ],
    "ranges": Maybe(
        {
            "ceiling": NUMBER, "limit": NUMBER, "largest": [_OP],
            "runs": [{"part": PART, "function": TEXT, "blocks": [_OP]}],
        }
    ),
    "findings": [
        {"function": TEXT, "block": TEXT, "op": Maybe(TEXT), "found": NUMBER, "expected": NUMBER, "snr_db": NUMBER,
         "yardstick_db": NUMBER, "float32_db": NUMBER, "cause": TEXT, "piece": Maybe(TEXT)}
    ],
    "limits": [
        {"quantity": TEXT, "metric": TEXT, "bound": _one_of("min", "max"), "limit": NUMBER, "value": NUMBER,
         "subject": TEXT, "passed": FLAG, "rung": TEXT, "reason": TEXT}
    ],
    "not_measured": [TEXT],
    "lacking": [TEXT],
    "sizes": {
        "total_bytes": COUNT, "state_bytes": COUNT,
        "packages": [{"package": TEXT, "bytes": COUNT, "weight_bytes": COUNT}],
        "files": [{"file": TEXT, "bytes": COUNT, "sha256": TEXT}],
    },
    "placement": Maybe([{"file": TEXT, "provider": TEXT, "nodes": COUNT}]),
    "devices": Maybe(
        {
            "note": TEXT,
            "rows": [
                {
                    "devices": [TEXT], "kind": _one_of("phone", "tablet", "mac"), "chip": TEXT, "memory_gb": [COUNT],
                    "image_size": COUNT, "fits": _one_of("yes", "with increased-memory-limit", "no", "unknown"),
                    "leaves_room": FLAG, "fits_app": FLAG, "need_bytes": COUNT, "limit_bytes": Maybe(COUNT),
                    "increased_bytes": Maybe(COUNT), "basis": TEXT, "first_token": SECONDS,
                    "tokens_per_second": NUMBER, "assumed": [TEXT],
                }
            ],
        }
    ),
    "times": Maybe(
        {
            "measured_by": _one_of("validation", "profile"), "machine": Maybe(TEXT), "load_average": Maybe(NUMBER),
            "contenders": [
                {
                    "name": TEXT, "compute_units": Maybe(TEXT), "peak_bytes": Maybe(COUNT),
                    "stages": [{"stage": TEXT, "position": Maybe(COUNT), "median": SECONDS, "count": COUNT}],
                }
            ],
        }
    ),
}  # fmt: skip


def names_itself(document: Any) -> bool:
    """Whether a document says that it is a report, of whatever schema."""
    tool = document.get("tool") if isinstance(document, dict) else None
    return isinstance(tool, dict) and tool.get("name") == TOOL


def check(document: Any, named: str) -> dict[str, Any]:
    """Returns a document in which every field of `FIELDS` is there, null where it may be, and of its type.

    `named` is the file it came from. Raises ReportError that lists what is wrong.
    """
    schema = document.get("schema") if names_itself(document) else None
    if not isinstance(schema, str) or not re.fullmatch(r"\d{1,6}\.\d{1,6}", schema):
        raise ReportError(f"{named} is no report of fastvlm; make one with `fastvlm validate BUILD --report FILE.html`")
    if int(schema.split(".")[0]) > int(SCHEMA.split(".")[0]):
        raise ReportError(f"{named} has schema {schema}, this fastvlm reads up to {SCHEMA}; install a newer fastvlm")
    problems: list[str] = []
    checked = _checked(document, FIELDS, "", problems)
    if not problems:
        problems += _outside(checked)
    if problems:
        more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise ReportError(f"{named} is damaged: {'; '.join(problems[:LISTED])}{more}; make the report again")
    return dict(checked)


def _checked(value: Any, kind: Any, path: str, problems: list[str]) -> Any:
    """The value with null for fields that are missing and may be; what is wrong goes to `problems`."""
    if isinstance(kind, Maybe):
        return None if value is None else _checked(value, kind.kind, path, problems)
    if isinstance(kind, dict) and isinstance(value, dict):
        inner = f"{path}." if path else ""
        return {key: _checked(value.get(key), below, f"{inner}{key}", problems) for key, below in kind.items()}
    if isinstance(kind, list) and isinstance(value, list):
        return [_checked(item, kind[0], f"{path}.{place}", problems) for place, item in enumerate(value)]
    if not isinstance(kind, Kind) or not kind.holds(value):
        expected = kind.words if isinstance(kind, Kind) else "a list" if isinstance(kind, list) else "an object"
        found = "nothing" if value is None else repr(str(value)[:40])
        problems.append(f"{path or 'the document'} is {found}, expected {expected}")
    return value


def _outside(document: dict[str, Any]) -> Iterator[str]:
    """Numbers that point at nothing, and copies of pictures that nothing says how to show."""
    for place, picture in enumerate(document["pictures"]):
        absent = [key for key in ("width", "height", "type") if picture["data"] is not None and picture[key] is None]
        if absent:
            yield f"pictures.{place} has data and no {', '.join(absent)}"
    for place, question in enumerate(document["questions"]):
        if question["picture"] >= len(document["pictures"]):
            yield f"questions.{place}.picture is {question['picture']}, there are {len(document['pictures'])} pictures"
