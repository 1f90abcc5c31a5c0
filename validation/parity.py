"""Package against reference: image tokens, logits, greedy tokens. Measures, never judges (`validation.limits` does).

The decoder is compared on the reference's own image tokens, so that its error is its own; then once more from pixels,
with the package's image tokens, which is what a user gets. Both are teacher-forced with the reference's greedy tokens:
after a divergence the two would otherwise answer different questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastvlm_ref.engine import Engine
from validation.limits import LIMITS, Limit
from validation.metrics import cosine, kl_divergence, margin, max_error, psnr_db, snr_db, worst_row_snr_db
from validation.reference import Encoded, Transcript


@dataclass(frozen=True)
class EncoderParity:
    """One picture's image tokens (T, H): package against reference, all in dB but the cosine."""

    psnr_db: float
    snr_db: float
    rounded_snr_db: float  # of the reference with every op rounded to fp16
    cosine: float
    worst_token_db: float

    @property
    def snr_loss_db(self) -> float:
        """How much the package is worse than fp16 alone; negative when it is better.

        inf where fp16 alone already ruins the picture: being no worse than a ruin is nothing to pass with.
        """
        if self.rounded_snr_db == -math.inf:
            return math.inf
        return 0.0 if self.rounded_snr_db == self.snr_db else self.rounded_snr_db - self.snr_db


def compare_encoder(reference: Encoded, actual: NDArray[np.float32]) -> EncoderParity:
    """Returns how far image tokens (T, H) are from the reference's."""
    return EncoderParity(
        psnr_db(reference.tokens, actual),
        snr_db(reference.tokens, actual),
        snr_db(reference.tokens, reference.rounded),
        cosine(reference.tokens, actual),
        worst_row_snr_db(reference.tokens, actual),
    )


@dataclass
class DecoderParity:
    """The steps of one transcript: per step KL, logit error over the logits' spread, and whether the tokens agree."""

    reference_ids: list[int] = field(default_factory=list)
    package_ids: list[int] = field(default_factory=list)  # what the package would have said at each step
    kl: list[float] = field(default_factory=list)
    logit_error: list[float] = field(default_factory=list)
    ties: int = 0  # differing tokens that a logit error of this size explains
    divergences: int = 0  # differing tokens that it does not
    error_limit: Limit = LIMITS["language.logit_error"]

    @property
    def mean_kl(self) -> float:
        """KL in nats, mean over the steps."""
        return sum(self.kl) / len(self.kl)

    def add(self, reference: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
        """Counts one step: logits (V,) of both sides."""
        error = max_error(reference, actual)
        expected, said = int(reference.argmax()), int(actual.argmax())
        self.reference_ids.append(expected)
        self.package_ids.append(said)
        self.kl.append(kl_divergence(reference, actual))
        self.logit_error.append(relative_error(error, reference))
        if expected != said:
            # A tie: an error of this size on both tokens can swap them, so nothing is shown to be wrong. Only where
            # the error itself is within its limit: a large one would excuse every token.
            small = self.error_limit.holds(self.logit_error[-1])
            tie = small and margin(reference) <= 2 * error
            self.ties += int(tie)
            self.divergences += int(not tie)


def relative_error(error: float, reference: NDArray[np.float32]) -> float:
    """Returns an error over the spread (standard deviation) of logits (V,); inf where constant logits differ at all."""
    spread = float(reference.std())
    if spread == 0.0:
        return math.inf if error else 0.0
    return error / spread


def compare_decoder(
    reference: Transcript,
    package: Engine,
    embeds: NDArray[np.float32],
    error_limit: Limit = LIMITS["language.logit_error"],
) -> DecoderParity:
    """Leads the package through the reference's transcript, behind the package's own prompt embeddings (S, H).

    `error_limit` is what a logit error may be for a differing token to count as a tie.
    """
    parity = DecoderParity(error_limit=error_limit)
    package.reset()
    package.prefill(embeds[:-1])
    row = embeds[-1:]
    for logits, chosen in zip(reference.logits, reference.ids, strict=True):
        parity.add(logits, package.decode(row))
        row = package.embed([chosen])
    return parity
