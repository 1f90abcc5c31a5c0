"""The report's document: everything that a validation found, as plain data; the page is made of it and nothing else.

It holds no path and no machine. For the same validation it is the same document, but for `times`. What its fields are,
`validation.html_report.schema` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastvlm import __version__
from fastvlm_ref.samples import Sample
from validation.blocks import BlockComparison
from validation.comparison import Comparison
from validation.html_report.devices import device_rows
from validation.html_report.pictures import embedded
from validation.html_report.provenance import about, files, placement
from validation.html_report.schema import SCHEMA, TOOL
from validation.html_report.times import taken
from validation.html_report.transcripts import differing, questions
from validation.html_report.values import block_runs, ranges
from validation.verdict import Verdict, in_order


def report_of(
    verdict: Verdict, comparison: Comparison, samples: Sequence[Sample], blocks: BlockComparison
) -> dict[str, Any]:
    """Returns the document of a comparison that has run; `samples` in the order in which they were compared.

    Raises ImageError where a picture is gone meanwhile.
    """
    build, onnx = comparison.pair.build, comparison.onnx
    pictures = {sample.picture: comparison.name_of(sample) for sample in samples}
    return {
        "schema": SCHEMA,
        "tool": {"name": TOOL, "version": __version__},
        "verdict": verdict.word,
        "holds": verdict.holds,
        "backend": verdict.backend,
        "steps": verdict.steps,
        "compared_in_full": verdict.pictures,
        "score": asdict(verdict.score) if verdict.answers else None,
        "build": about(comparison.pair, verdict),
        "pictures": embedded([(name, path) for path, name in pictures.items()]),
        "questions": [*questions(comparison, samples, verdict.answers, verdict.pictures)],
        "differing_steps": [*differing(comparison)],
        "blocks": block_runs(blocks, comparison.pair),
        "ranges": ranges(comparison, blocks),
        "findings": [finding.as_json() for finding in verdict.findings],
        "limits": [row.as_json() for row in in_order(verdict.rows)],
        "not_measured": list(verdict.not_measured),
        "lacking": list(verdict.lacking),
        "sizes": files(build, onnx.cache_bytes if onnx else None),
        "placement": placement(onnx.placement()) if onnx else None,
        "devices": device_rows(build),
        "times": taken(comparison.stopwatch.seconds, verdict.backend),
    }
