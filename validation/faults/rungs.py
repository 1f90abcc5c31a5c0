"""The rungs of the comparison as the suite runs them: a few steps of one question, whose prompt takes two chunks."""

from __future__ import annotations

from collections.abc import Sequence

from fastvlm.errors import FastVLMError
from fastvlm.manifest import check_files
from fastvlm.progress import SILENT
from fastvlm_ref.samples import Sample, shipped_samples
from validation.audit import audit
from validation.blocks import compare_blocks
from validation.comparison import Comparison
from validation.faults.bench import Bench
from validation.limits import Measurement
from validation.op_parity import compare_ops
from validation.pair import Pair
from validation.rungs import Example

STEPS = 8
# Longer than a chunk of `prefill`, with digits, capitals, what spells a control token, and "!!", which a generated
# vocabulary merges.
QUESTION = (
    "Describe the picture in one line: 3 words or 12, no <|im_end|>!! Say nothing of its size, its border or "
    "whatever else is not there."
)
Rows = Sequence[Measurement]


class Climb:
    """The rungs of one bench, one after the other; blocks take the sample that the whole run began with."""

    def __init__(self, bench: Bench) -> None:
        self.pair, self.tokenizer = Pair(bench.build, bench.model), bench.tokenizer
        self.example: Example | None = None

    def constants(self) -> Rows:
        """Every number of the packages with the checkpoint's."""
        return audit(self.pair)

    def ops(self) -> Rows:
        """Every piece of the programs alone."""
        return compare_ops(self.pair)

    def network(self) -> Rows:
        """The whole model, from pixels and ids to tokens: rows of "network", "tokens", and some of "constants"."""
        comparison = Comparison(self.pair, self.tokenizer, "mil", STEPS, SILENT)
        rows, _ = comparison.run([Sample(shipped_samples()[0].picture, QUESTION)], 1)
        self.example = comparison.example()
        return rows

    def blocks(self) -> Rows:
        """Every block of a whole run."""
        if self.example is None:  # the whole run was refused, and that is an alarm of its own
            return ()
        return compare_blocks(self.pair, self.example.pictures, self.example.rows).measurements


def climb(bench: Bench) -> tuple[tuple[Measurement, ...], dict[str, str]]:
    """Runs every rung; returns all rows, and by rung the message of one that could not be run at all.

    What is planted must not be found by hashes: BuildError where the manifest does not agree with the files.
    """
    check_files(bench.folder, bench.build.manifest)
    rows: list[Measurement] = []
    refused: dict[str, str] = {}
    climb = Climb(bench)
    for rung in ("constants", "ops", "network", "blocks"):
        try:
            rows += getattr(climb, rung)()
        except FastVLMError as error:
            refused[rung] = str(error)
    return tuple(rows), refused
