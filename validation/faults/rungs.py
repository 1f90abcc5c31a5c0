"""The rungs of the comparison as the suite runs them: a few steps of one question, whose prompt takes two chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastvlm.errors import FastVLMError
from fastvlm.manifest import check_files
from fastvlm.progress import SILENT
from fastvlm_ref.samples import Sample, shipped_samples
from validation.comparison import Comparison
from validation.faults.bench import Bench
from validation.limits import Measurement

STEPS = 8
# Longer than a chunk of `prefill`, with digits, capitals, what spells a control token, and "!!", which a generated
# vocabulary merges.
QUESTION = (
    "Describe the picture in one line: 3 words or 12, no <|im_end|>!! Say nothing of its size, its border or "
    "whatever else is not there."
)
Run = Callable[[Bench], tuple[Measurement, ...]]


def whole(bench: Bench) -> tuple[Measurement, ...]:
    """Runs the whole model, from pixels and ids to tokens: rows of "network", "tokens", and some of "constants"."""
    comparison = Comparison(bench.build, bench.model, bench.tokenizer, "mil", STEPS, SILENT)
    rows, _ = comparison.run([Sample(shipped_samples()[0].picture, QUESTION)])
    return rows


RUNS: Mapping[str, Run] = {"network": whole}  # by the rung that a run belongs to


def climb(bench: Bench) -> tuple[tuple[Measurement, ...], dict[str, str]]:
    """Runs every rung; returns all rows, and by rung the message of one that could not be run at all.

    What is planted must not be found by hashes: BuildError where the manifest does not agree with the files.
    """
    check_files(bench.folder, bench.build.manifest)
    rows: list[Measurement] = []
    refused: dict[str, str] = {}
    for rung, run in RUNS.items():
        try:
            rows += run(bench)
        except FastVLMError as error:
            refused[rung] = str(error)
    return tuple(rows), refused
