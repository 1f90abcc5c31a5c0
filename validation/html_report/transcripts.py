"""The questions of a comparison as the report's document has them: both answers, and every step of the transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastvlm_ref.samples import Sample
from validation.comparison import Comparison
from validation.limits import storable
from validation.parity import DecoderParity, EncoderParity, Step
from validation.questions import AnswerRow, is_right

PIXELS, REFERENCE = "pixels", "reference"  # whose image tokens a transcript stands on


def questions(
    comparison: Comparison, samples: Sequence[Sample], answers: Sequence[AnswerRow], in_full: int
) -> Iterator[dict[str, Any]]:
    """Gives every question in the order in which it was asked; `answers` are the verdict's, none of a part alone.

    Of those behind the first `in_full` there are answers, but no transcript.
    """
    numbers = {path: number for number, path in enumerate(dict.fromkeys(sample.picture for sample in samples))}
    for number, sample in enumerate(samples):
        answer = answers[number] if answers else None
        compared = number < in_full
        yield {
            "picture": numbers[sample.picture],
            "name": comparison.name_of(sample),
            "prompt": sample.prompt if comparison.pair.build.language else None,
            "expected": sample.answer,
            "answers": None if answer is None else _answers(answer),
            "encoder": [*_image_tokens(comparison, sample)] if compared else [],
            "transcript": _transcript(comparison, sample) if compared else None,
        }


def _answers(row: AnswerRow) -> dict[str, Any]:
    known = row.expected is not None
    sides = {"coreml": row.coreml, "pytorch": row.pytorch}
    said = {
        side: {"text": text, "right": is_right(text, row.expected) if known else None} for side, text in sides.items()
    }
    return {**said, "same": row.same}


def _image_tokens(comparison: Comparison, sample: Sample) -> Iterator[dict[str, Any]]:
    """How close the picture's image tokens are, at every exported size."""
    for size in comparison.pair.build.image_sizes:
        parity: EncoderParity | None = comparison.found.encoder.get(f"{comparison.name_of(sample)} at {size}")
        if parity is not None:
            yield {
                "size": size,
                "psnr_db": storable(parity.package.psnr_db),
                "snr_db": storable(parity.package.snr_db),
                "rounded_snr_db": storable(parity.rounded.snr_db),
            }


def _transcript(comparison: Comparison, sample: Sample) -> dict[str, Any] | None:
    """Every step from pixels where the build has an encoder, else from the reference's image tokens."""
    name = f"{comparison.name_of(sample)}: {sample.prompt}"
    found = comparison.found.answer.get(name) or comparison.found.language.get(name)
    if found is None:
        return None
    ends = (number for number, step in enumerate(found.steps) if step.reference_id in comparison.stop_ids)
    return {
        "from": PIXELS if name in comparison.found.answer else REFERENCE,
        "answer_steps": next(ends, len(found.steps)),
        "steps": [step_row(comparison, step) for step in found.steps],
    }


def differing(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Gives every step, of both transcripts of every question, at which the package's token is another."""
    found = {"language": comparison.found.language, "answer": comparison.found.answer}
    for of, transcripts in found.items():
        for name, parity in transcripts.items():
            for number, step in _differing(parity):
                yield {"of": of, "sample": name, "step": number, **step_row(comparison, step)}


def _differing(parity: DecoderParity) -> Iterator[tuple[int, Step]]:
    return ((number, step) for number, step in enumerate(parity.steps, 1) if step.differs)


def step_row(comparison: Comparison, step: Step) -> dict[str, Any]:
    """Returns one step: both tokens, how sure the reference was, the errors; probabilities where the tokens part."""
    sides = {"pytorch": step.reference_id, "coreml": step.package_id}
    row: dict[str, Any] = {side: {"id": i, "text": comparison.tokenizer.spelled(i)} for side, i in sides.items()}
    row |= {
        "margin": storable(step.margin),
        "logit_error": storable(step.error),
        "kl": storable(step.kl),
        "tie": step.tie,
    }
    if step.chances is not None:
        for side, chances in (("pytorch", step.chances.reference), ("coreml", step.chances.package)):
            row[side]["probability"] = dict(zip(sides, map(storable, chances), strict=True))
    return row
