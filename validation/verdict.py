"""What `validate` found: every limit with its value, the answers of both sides, and the verdict.

`validation.json` says the same in a build; it holds no time, path or machine, so equal builds give equal files.
Only a comparison with the checkpoint that the build was made from can pass: beside another one (`--other-reference`)
the verdict is "compared", whatever the limits say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from validation.blocks import Finding
from validation.limits import RUNGS, Measurement
from validation.questions import AnswerRow, DifferingStep, Score

FILE = "validation.json"
SCHEMA = "0.3"  # 0.3: `selftest`, the SHA-256 of each file of selftest/, where one was written


@dataclass(frozen=True)
class ReferenceFiles:
    """The files of the checkpoint that was compared with, file -> sha256; `differing` from the build's source."""

    sha256: dict[str, str]
    differing: tuple[str, ...] = ()

    @property
    def is_source(self) -> bool:
        """Whether the build was made from this checkpoint."""
        return not self.differing


@dataclass(frozen=True)
class Verdict:
    """The result of one validation."""

    rows: tuple[Measurement, ...]
    answers: tuple[AnswerRow, ...]
    score: Score
    differing_steps: tuple[DifferingStep, ...]
    findings: tuple[Finding, ...]  # where the first block goes wrong, of each run whose blocks miss their limit
    backend: str
    steps: int
    pictures: int  # that were compared in full
    not_measured: tuple[str, ...]  # limits that this backend, or this part of a build, cannot be held against
    lacking: tuple[str, ...]  # those of them that should have been measured: a check that was not reached is a failure
    manifest_sha256: str
    reference: ReferenceFiles
    path: Path  # where validation.json was written
    compute_units: str | None = None  # where Core ML was told to run, None for the target's
    selftest: dict[str, str] | None = None  # the SHA-256 of each file of selftest/, where one was written

    @property
    def extent(self) -> str:
        """On how much it was compared, in words."""
        counts = [(self.pictures, "picture"), *([(self.steps, "step")] if self.answers else [])]
        return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)

    @property
    def holds(self) -> bool:
        """True when every limit that can be measured was, and holds (and there was at least one)."""
        return bool(self.rows) and not self.lacking and all(row.passed for row in self.rows)

    @property
    def passed(self) -> bool:
        """True when every limit holds beside the build's own source: the build computes what it should."""
        return self.holds and self.reference.is_source

    @property
    def word(self) -> str:
        """ "passed" or "failed"; "compared" where the reference is not the build's source."""
        if not self.reference.is_source:
            return "compared"
        return "passed" if self.passed else "failed"

    def as_json(self) -> dict[str, object]:
        """The content of validation.json."""
        return {
            "schema": SCHEMA,
            "verdict": self.word,
            "backend": self.backend,
            **({"compute_units": self.compute_units} if self.compute_units else {}),
            "steps": self.steps,
            "pictures": self.pictures,
            "not_measured": list(self.not_measured),
            "lacking": list(self.lacking),
            "limits": [row.as_json() for row in in_order(self.rows)],
            "answers": [{**vars(row), "same": row.same} for row in self.answers],
            "questions": asdict(self.score),
            "differing_steps": [step.as_json() for step in self.differing_steps],
            "findings": [finding.as_json() for finding in self.findings],
            "manifest_sha256": self.manifest_sha256,
            "reference_is_source": self.reference.is_source,
            "reference_differs_in": list(self.reference.differing),
            "reference_files": self.reference.sha256,
            **({"selftest": self.selftest} if self.selftest is not None else {}),
        }


def in_order(rows: Sequence[Measurement]) -> list[Measurement]:
    """Returns rows by rung, in the order of `RUNGS`, else as they were."""
    return sorted(rows, key=lambda row: RUNGS.index(row.limit.rung))
