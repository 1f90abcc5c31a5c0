"""What a comparison has found, by what it was found on, and the rows of the table that it is held against.

For each row the worst value counts, with the picture, prompt, step or layer where it was. The mean KL is over all
steps of all transcripts: a single one has few steps, and KL is as uneven as the model is unsure.
It knows numbers alone, neither models nor packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from validation.limits import Limit, Measurement, worst
from validation.parity import DecoderParity, EncoderParity
from validation.state_parity import StateParity

OF_PICTURES = ("psnr_db", "snr_db", "snr_loss_db", "cosine_loss_db", "worst_token_loss_db")
OF_STEPS = {
    "kl_step": "kl",
    "logit_error": "error",
    "top5_overlap": "overlap",
    "rank": "rank",
}  # metric -> Step's field


@dataclass
class Findings:
    """By what it was found on: encoder by picture and size, language and answer by sample.

    single: the values of other rows, {row: {where: value}}.
    """

    encoder: dict[str, EncoderParity] = field(default_factory=dict)
    language: dict[str, DecoderParity] = field(default_factory=dict)
    answer: dict[str, DecoderParity] = field(default_factory=dict)
    state: StateParity | None = None
    single: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, key: str, where: str, value: float) -> None:
        """Keeps one value of a row."""
        self.single.setdefault(key, {})[where] = value

    def measurements(self, limits: Mapping[str, Limit]) -> list[Measurement]:
        """Returns the worst value of every row that anything was found for."""
        return [worst(key, values, limits) for key, values in self._values(limits)]

    def _values(self, limits: Mapping[str, Limit]) -> Iterator[tuple[str, dict[str, float]]]:
        for metric in OF_PICTURES if self.encoder else ():
            if (key := f"encoder.{metric}") in limits:  # beside fp16 alone, or the error itself: a format's choice
                yield key, {name: getattr(row, metric) for name, row in self.encoder.items()}
        for quantity, transcripts in (("language", self.language), ("answer", self.answer)):
            if transcripts:
                yield from _of_transcripts(quantity, transcripts)
        if self.state is not None:
            for kind, losses in self.state.loss.items():
                yield f"state.{kind}_loss_db", losses
            yield "state.chunking_loss_db", self.state.chunking
        yield from self.single.items()


def _of_transcripts(quantity: str, transcripts: Mapping[str, DecoderParity]) -> Iterator[tuple[str, dict[str, float]]]:
    steps = {
        f"{name}, step {number}": step
        for name, parity in transcripts.items()
        for number, step in enumerate(parity.steps, 1)
    }
    yield f"{quantity}.kl", {f"mean of {len(steps)} steps": sum(step.kl for step in steps.values()) / len(steps)}
    for metric, of_step in OF_STEPS.items():
        yield f"{quantity}.{metric}", {name: float(getattr(step, of_step)) for name, step in steps.items()}
    yield f"{quantity}.divergences", {name: float(parity.divergences) for name, parity in transcripts.items()}
