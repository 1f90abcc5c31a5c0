"""The report of a validation, for people: one Markdown file with the answers, the limits, and what was compared.

It is made from `validation.json` alone, so it can be made again from any build; the same verdict gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastvlm.errors import BuildError
from fastvlm.publish import replace_file
from validation.limits import in_words
from validation.questions import Score
from validation.verdict import FILE

WORDS = {
    "passed": "passed: every limit holds",
    "failed": "FAILED: at least one limit was missed",
    "compared": "none: the reference is not what the build was made from",
}


def write_report(build: Path, path: Path) -> Path:
    """Writes the report on a build to `path` and returns it; BuildError where the build holds no readable verdict."""
    try:
        verdict = json.loads((build / FILE).read_bytes())
        text = "\n".join(_lines(verdict))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BuildError(f"{build / FILE} cannot be read ({problem}); run `fastvlm validate` first") from problem
    replace_file(path, text.encode())
    return path


def _lines(verdict: dict[str, Any]) -> list[str]:
    return [
        "# Validation report", "",
        f"**Verdict: {WORDS[verdict['verdict']]}.** "
        f"Packages executed by backend `{verdict['backend']}`, {verdict['steps']} greedy steps per question.", "",
        "## Answers", "",
        *_table(("picture", "question", "Core ML", "PyTorch", "true answer"), map(_answer, verdict["answers"])),
        *(("", f"{Score(**verdict['questions']).in_words()}.") if verdict["answers"] else ()),
        "", "## Limits", "",
        *_table(("rung", "quantity", "worst value", "limit", "", "where", "why"), map(_limit, verdict["limits"])),
        *(("", f"Not measured: {', '.join(verdict['not_measured'])}.") if verdict["not_measured"] else ()),
        *_differing(verdict["differing_steps"]),
        *_findings(verdict.get("findings", [])),
        "", "## What was compared", "",
        f"- manifest sha256 `{verdict['manifest_sha256']}`",
        *(f"- reference `{name}` sha256 `{digest}`" for name, digest in sorted(verdict["reference_files"].items())),
        *(f"- not what the build was made from: `{name}` differs" for name in verdict["reference_differs_in"]),
        "",
    ]  # fmt: skip


def _differing(steps: list[dict[str, Any]]) -> list[str]:
    """The steps at which the two sides chose different tokens."""
    if not steps:
        return ["", "No token differs."]
    heads = ("of", "question", "step", "PyTorch", "Core ML", "margin", "logit error", "")
    return ["", "## Tokens that differ", "", *_table(heads, map(_step, steps))]


def _step(row: dict[str, Any]) -> tuple[Any, ...]:
    texts = (json.dumps(row[side]["text"], ensure_ascii=False) for side in ("pytorch", "coreml"))
    word = "tie" if row["tie"] else "**divergence**"
    return row["of"], row["sample"], row["step"], *texts, row["margin"], row["logit_error"], word


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    """Where the first block goes wrong, of a build that failed."""
    if not findings:
        return []
    heads = ("function", "block", "op", "found", "PyTorch", "SNR", "fp16 alone", "in float32", "cause")
    names = ("function", "block", "op", "found", "expected", "snr_db", "yardstick_db", "float32_db", "cause")
    return ["", "## Where it begins", "", *_table(heads, ([row[name] for name in names] for row in findings))]


def _answer(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["image"], row["prompt"], row["coreml"], row["pytorch"], row["expected"] or "—"


def _limit(row: dict[str, Any]) -> tuple[Any, ...]:
    word = "ok" if row["passed"] else "**MISSED**"
    name = f"{row['quantity']}.{row['metric']}"
    return row["rung"], name, row["value"], in_words(row["bound"], row["limit"]), word, row["subject"], row["reason"]


def _table(heads: tuple[str, ...], rows: Any) -> list[str]:
    return [_row(heads), "|" + "---|" * len(heads), *map(_row, rows)]


def _row(cells: tuple[Any, ...]) -> str:
    plain = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(plain)} |"
