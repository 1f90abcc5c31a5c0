"""What `validate` found: every limit with its value, the answers of both sides, and the verdict.

`validation.json` says the same in a build; it holds no time, path or machine, so equal builds give equal files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from validation.limits import Measurement

FILE = "validation.json"
SCHEMA = "0.1"


@dataclass(frozen=True)
class AnswerRow:
    """One question with the answers of the packages and of PyTorch; `expected` where the truth is known."""

    image: str
    prompt: str
    coreml: str
    pytorch: str
    expected: str | None

    @property
    def same(self) -> bool:
        """Whether both sides said the same."""
        return self.coreml == self.pytorch


@dataclass(frozen=True)
class Verdict:
    """The result of one validation."""

    rows: tuple[Measurement, ...]
    answers: tuple[AnswerRow, ...]
    backend: str
    steps: int
    not_measured: tuple[str, ...]  # limits that this backend, or this part of a build, cannot be held against
    manifest_sha256: str
    reference_files: dict[str, str]  # file -> sha256
    path: Path  # where validation.json was written

    @property
    def passed(self) -> bool:
        """True when every limit holds (and there was at least one)."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def as_json(self) -> dict[str, object]:
        """The content of validation.json."""
        return {
            "schema": SCHEMA,
            "verdict": "passed" if self.passed else "failed",
            "backend": self.backend,
            "steps": self.steps,
            "not_measured": list(self.not_measured),
            "limits": [row.as_json() for row in self.rows],
            "answers": [{**vars(row), "same": row.same} for row in self.answers],
            "manifest_sha256": self.manifest_sha256,
            "reference_files": self.reference_files,
        }
