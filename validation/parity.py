"""Package against reference: image tokens, logits, greedy tokens. Measures, never judges (`validation.limits` does).

The decoder is compared on the reference's own image tokens, so that its error is its own; then once more from pixels,
with the package's image tokens, which is what a user gets. Both are teacher-forced with the reference's greedy tokens:
after a divergence the two would otherwise answer different questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastvlm.errors import PackageError
from validation.limits import LIMITS, Limit
from validation.metrics import (
    angle_db,
    kl_divergence,
    margin,
    max_error,
    probabilities,
    psnr_db,
    rank,
    snr_db,
    top_overlap,
    worst_row_snr_db,
)
from validation.reference import Encoded, Transcript


@dataclass(frozen=True)
class Closeness:
    """How close image tokens (T, H) are to the reference's, all in dB: together, as a direction, and the worst token.

    psnr_db: 20·log10(max |ref| / RMSE). angle_db: −10·log10(1 − cosine). worst_token_db: the SNR of the worst token.
    """

    psnr_db: float
    snr_db: float
    angle_db: float
    worst_token_db: float


@dataclass(frozen=True)
class EncoderParity:
    """One picture's image tokens: the package's, and the reference's with every op rounded to fp16."""

    package: Closeness
    rounded: Closeness

    @property
    def psnr_db(self) -> float:
        """The package's own."""
        return self.package.psnr_db

    @property
    def snr_db(self) -> float:
        """The package's own."""
        return self.package.snr_db

    @property
    def snr_loss_db(self) -> float:
        """How much the package is worse than fp16 alone; negative when it is better."""
        return loss_db(self.rounded.snr_db, self.package.snr_db)

    @property
    def cosine_loss_db(self) -> float:
        """The same of 1 − cosine."""
        return loss_db(self.rounded.angle_db, self.package.angle_db)

    @property
    def worst_token_loss_db(self) -> float:
        """How much the package's worst token is worse than the worst of fp16 alone, which may be another."""
        return loss_db(self.rounded.worst_token_db, self.package.worst_token_db)


def loss_db(rounded: float, package: float) -> float:
    """Returns how many dB the package's value lies below that of fp16 alone.

    inf where fp16 alone already ruins everything: being no worse than a ruin is nothing to pass with.
    """
    if rounded == -math.inf:
        return math.inf
    return 0.0 if rounded == package else rounded - package


def compare_encoder(reference: Encoded, actual: NDArray[np.float32]) -> EncoderParity:
    """Returns how far image tokens (T, H) are from the reference's; PackageError for those of another shape."""
    if actual.shape != reference.tokens.shape:
        raise PackageError(
            f"the vision encoder gives image tokens of shape {list(actual.shape)}, the reference "
            f"{list(reference.tokens.shape)}; export the build again"
        )
    return EncoderParity(closeness(reference.tokens, actual), closeness(reference.tokens, reference.rounded))


def closeness(reference: NDArray[np.float32], actual: NDArray[np.float32]) -> Closeness:
    """Returns how close image tokens (T, H) are to others."""
    metrics = (psnr_db, snr_db, angle_db, worst_row_snr_db)
    return Closeness(*(metric(reference, actual) for metric in metrics))


class Decoding(Protocol):
    """What is asked of an engine here (`fastvlm_ref.engine.Engine`)."""

    def reset(self) -> None:
        """Forgets all positions."""

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns rows (S, H) of the embedding table."""

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills S positions."""

    def decode(self, embed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fills one more, from (1, H), and returns the logits (V,) behind it."""


@dataclass(frozen=True)
class Chances:
    """Which probability each side gives to the reference's token and to the package's, in this order."""

    reference: tuple[float, float]
    package: tuple[float, float]


@dataclass(frozen=True)
class Step:
    """One step of a transcript: both sides' tokens, and how far apart their logits (V,) are.

    error, margin: the largest difference of a logit, and the reference's best over its second best, both over the
    spread (standard deviation) of the reference's logits. overlap, rank: `metrics.top_overlap` and `rank`. tie: the
    tokens differ, and an error of this size explains it. chances: where they differ.
    """

    reference_id: int
    package_id: int  # what the package would have said
    kl: float  # nats
    error: float
    margin: float
    overlap: float
    rank: int
    tie: bool
    chances: Chances | None = None

    @property
    def differs(self) -> bool:
        """Whether the two sides chose different tokens."""
        return self.reference_id != self.package_id


@dataclass
class DecoderParity:
    """The steps of one transcript; `error_limit` is what a logit error may be for a differing token to be a tie."""

    error_limit: Limit = LIMITS["language.logit_error"]
    steps: list[Step] = field(default_factory=list)

    @property
    def reference_ids(self) -> list[int]:
        """The reference's tokens, (S,)."""
        return [step.reference_id for step in self.steps]

    @property
    def package_ids(self) -> list[int]:
        """The package's tokens, (S,), each behind the reference's."""
        return [step.package_id for step in self.steps]

    @property
    def logit_error(self) -> float:
        """The worst step's."""
        return max(step.error for step in self.steps)

    @property
    def ties(self) -> int:
        """Differing tokens that a logit error of this size explains."""
        return sum(step.tie for step in self.steps)

    @property
    def divergences(self) -> int:
        """Differing tokens that it does not."""
        return sum(step.differs and not step.tie for step in self.steps)

    def add(self, reference: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
        """Counts one step: logits (V,) of both sides."""
        expected, said = int(reference.argmax()), int(actual.argmax())
        error = over_spread(max_error(reference, actual), reference)
        ahead = over_spread(margin(reference), reference)
        # A tie: an error of this size on both tokens can swap them, so nothing is shown to be wrong. Only where the
        # error itself is within its limit: a large one would excuse every token.
        tie = expected != said and self.error_limit.holds(error) and ahead <= 2 * error
        kl, overlap, place = (metric(reference, actual) for metric in (kl_divergence, top_overlap, rank))
        chances = _chances(reference, actual, (expected, said)) if expected != said else None
        self.steps.append(Step(expected, said, kl, error, ahead, overlap, int(place), tie, chances))


def _chances(reference: NDArray[np.float32], actual: NDArray[np.float32], ids: tuple[int, int]) -> Chances:
    """The probabilities of two tokens by logits (V,) of both sides."""
    first, second = (probabilities(logits) for logits in (reference, actual))
    return Chances(*((float(side[ids[0]]), float(side[ids[1]])) for side in (first, second)))


def over_spread(value: float, reference: NDArray[np.float32]) -> float:
    """Returns a value over the spread (standard deviation) of logits (V,); inf where constant logits differ at all."""
    spread = float(reference.std())
    if spread == 0.0:
        return math.inf if value else 0.0
    return value / spread


def compare_decoder(
    reference: Transcript,
    package: Decoding,
    embeds: NDArray[np.float32],
    error_limit: Limit = LIMITS["language.logit_error"],
) -> DecoderParity:
    """Leads the package through the reference's transcript, behind the package's own prompt embeddings (S, H).

    `error_limit` is what a logit error may be for a differing token to count as a tie.
    """
    parity = DecoderParity(error_limit)
    package.reset()
    package.prefill(embeds[:-1])
    row = embeds[-1:]
    for logits, chosen in zip(reference.logits, reference.ids, strict=True):
        parity.add(logits, package.decode(row))
        row = package.embed([chosen])
    return parity
