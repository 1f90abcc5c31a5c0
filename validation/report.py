"""The report of a validation, for people: one Markdown file with the answers, the limits, and what was compared."""

from __future__ import annotations

from pathlib import Path

from fastvlm.publish import replace_file
from validation.verdict import Verdict


def write_report(verdict: Verdict, path: Path) -> Path:
    """Writes the report to `path` and returns it; the same verdict gives the same bytes."""
    replace_file(path, "\n".join(_lines(verdict)).encode())
    return path


def _lines(verdict: Verdict) -> list[str]:
    word = "passed: every limit holds" if verdict.passed else "FAILED: at least one limit was missed"
    return [
        "# Validation report", "",
        f"**Verdict: {word}.** The packages were executed by backend `{verdict.backend}`, "
        f"{verdict.steps} greedy steps per question.", "",
        "## Answers", "",
        "| picture | question | Core ML | PyTorch | true answer |", "|---|---|---|---|---|",
        *(
            f"| {_cell(row.image)} | {_cell(row.prompt)} | {_cell(row.coreml)} | {_cell(row.pytorch)} | "
            f"{_cell(row.expected or '—')} |"
            for row in verdict.answers
        ),
        "", "## Limits", "",
        "| quantity | metric | worst value | limit | | where | why |", "|---|---|---|---|---|---|---|",
        *(
            f"| {row.limit.quantity} | {row.limit.metric} | {row.value:.3g} | {row.limit.words} | "
            f"{'ok' if row.passed else '**MISSED**'} | {_cell(row.subject)} | {_cell(row.limit.reason)} |"
            for row in verdict.rows
        ),
        *(("", f"Not measured here: {', '.join(verdict.not_measured)}.") if verdict.not_measured else ()),
        "", "## What was compared", "",
        f"- manifest sha256 `{verdict.manifest_sha256}`",
        *(f"- reference `{name}` sha256 `{digest}`" for name, digest in sorted(verdict.reference_files.items())),
        "",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
