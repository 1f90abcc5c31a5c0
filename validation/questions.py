"""What came of the questions: how often build and PyTorch agree, how often each is right, and every differing step.

An answer is right when it is the true one but for case, blanks at its ends and one full stop. Two answers agree when
they are the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from validation.limits import storable
from validation.parity import Step


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


def is_right(said: str, expected: str | None) -> bool:
    """Returns whether an answer is the true one; False where that is not known."""
    return expected is not None and _plain(said) == _plain(expected)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().casefold()


@dataclass(frozen=True)
class Score:
    """Of `count` questions: on how many both sides agree, and of those with a known answer how many each has right.

    in_full: those whose every step was compared; of the others the answers alone.
    """

    count: int
    in_full: int
    agree: int
    answered: int
    build_right: int
    reference_right: int

    def in_words(self) -> str:
        """The same in a sentence or two."""
        said = f"build and PyTorch agree on {self.agree} of {self.count}"
        if self.answered:
            said += f"; of {self.answered} with a known answer the build has {self.build_right} right, "
            said += f"PyTorch {self.reference_right}"
        alone = self.count - self.in_full
        return said + (
            f"; compared in full: the first {self.in_full}, of the others the answers alone" if alone else ""
        )


def score(rows: Sequence[AnswerRow], in_full: int) -> Score:
    """Counts answers; the first `in_full` questions were compared step by step."""
    known = [row for row in rows if row.expected is not None]
    return Score(
        len(rows),
        min(in_full, len(rows)),
        sum(row.same for row in rows),
        len(known),
        sum(is_right(row.coreml, row.expected) for row in known),
        sum(is_right(row.pytorch, row.expected) for row in known),
    )


@dataclass(frozen=True)
class DifferingStep:
    """A step of a transcript at which the package's token is another; texts are those of the tokens alone.

    of: "language" (from the reference's image tokens) or "answer" (from pixels).
    """

    of: str
    sample: str
    number: int  # from 1
    step: Step
    reference_text: str
    package_text: str

    def as_json(self) -> dict[str, object]:
        """The row as `validation.json` shows it; margin and error over the spread of the reference's logits."""
        return {
            "of": self.of,
            "sample": self.sample,
            "step": self.number,
            "pytorch": {"id": self.step.reference_id, "text": self.reference_text},
            "coreml": {"id": self.step.package_id, "text": self.package_text},
            "margin": storable(self.step.margin),
            "logit_error": storable(self.step.error),
            "tie": self.step.tie,
        }
