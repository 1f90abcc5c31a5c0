"""The five rungs together, from constants to tokens, and what is looked for when one of them is missed.

`validation.comparison` runs network and tokens, sample by sample; the rungs below need one sample at most. Each is a
call of its own, so that a fault's rung can be run alone (`validation.faults`).
It judges nothing and writes nothing: `validation.judging` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm.progress import SILENT, Progress
from validation.audit import audit
from validation.blocks import BlockComparison, Finding, bisect, compare_blocks
from validation.limits import Measurement
from validation.op_parity import compare_ops
from validation.pair import Pair

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One sample as both sides see it: RGB bytes (N, N, 3) by exported size, and the prompt's rows (S, H).

    rows: with the reference's image tokens; None for a build without a language model.
    """

    pictures: Sequence[NDArray[np.uint8]]
    rows: Rows | None


def lower_rungs(pair: Pair, progress: Progress = SILENT) -> list[Measurement]:
    """Rungs "constants" and "ops": the packages' files against the checkpoint, whoever will execute them."""
    return [*audit(pair, progress), *compare_ops(pair, progress)]


def block_rung(pair: Pair, example: Example, progress: Progress = SILENT) -> tuple[BlockComparison, list[Finding]]:
    """Rung "blocks" on one example, and where the first block that misses its limit goes wrong."""
    compared = compare_blocks(pair, example.pictures, example.rows, progress)
    missed = any(not row.passed for row in compared.measurements)
    return compared, bisect(pair, compared) if missed else []


def excused(pair: Pair, backend: str, layerwise: bool) -> set[str]:
    """Returns the rows that a comparison cannot measure for a reason that is no fault; any other must be measured.

    A build may lack a part (`--only`), Core ML does not show what is inside a package, and layer by layer there is no
    state to read. What ONNX files are held to is what their outputs show (`validation.limits.onnx`).
    """
    build, without = pair.build, set[str]()
    if build.encoder is None:
        without |= {"encoder", "encoder_blocks", "answer", "preprocess"}
    if not build.language:
        without |= {"language", "language_blocks", "answer", "prompt", "embeddings", "state", "tokenizer"}
    if backend != "mil":
        without |= {"blocks", "encoder_blocks", "language_blocks"}
    if layerwise:
        without.add("state")
    found = {key for key, limit in pair.limits.items() if limit.quantity in without}
    if backend != "mil":
        found |= {key for key, limit in pair.limits.items() if limit.metric == "peak"}
    if build.encoder is None and pair.build.manifest["compression"].get("layers"):
        found.add("op.weights_db")  # perhaps every weight is compressed
    return found
