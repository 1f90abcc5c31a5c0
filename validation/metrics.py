"""How far two arrays are apart: the few numbers that every comparison here is made of.

All of them compute in float64 and take `reference` first. None of them decides whether a difference is good
enough; `validation.limits` does. A NaN or Inf in either array makes every metric as bad as it can be, so that no
comparison passes because nothing compares with NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
TOP = 5
SWAPPED_BY = 8.0  # RMS errors; 1.8 at most on the embedded checkpoint, 1.4 on one of 0.5B size with drawn weights


def _pair(reference: Array, actual: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != actual.shape:
        raise ValueError(f"shapes differ: reference {reference.shape}, actual {actual.shape}")
    return reference.astype(np.float64).ravel(), actual.astype(np.float64).ravel()


def _finite(*arrays: NDArray[np.float64]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def snr_db(reference: Array, actual: Array) -> float:
    """Returns the signal-to-noise ratio in dB: 10·log10(Σ ref² / Σ (ref − actual)²)."""
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return -math.inf
    return _decibel(float(ref @ ref), float((ref - act) @ (ref - act)))


def psnr_db(reference: Array, actual: Array) -> float:
    """Returns the peak signal-to-noise ratio in dB: 20·log10(max |ref| / RMSE)."""
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return -math.inf
    return _decibel(float(np.abs(ref).max()) ** 2, float(np.mean((ref - act) ** 2)))


def cosine(reference: Array, actual: Array) -> float:
    """Returns the cosine of the angle between the two arrays, 1.0 when they point the same way."""
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return -1.0
    norms = float(np.linalg.norm(ref) * np.linalg.norm(act))
    return float(ref @ act) / norms if norms else float(np.array_equal(ref, act))


def angle_db(reference: Array, actual: Array) -> float:
    """Returns how closely two arrays point the same way in dB: −10·log10(1 − cosine), inf where they do exactly.

    1 − cosine is taken from the difference of the unit vectors: a cosine that is 1 to sixteen digits has no rest left.
    """
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return -math.inf
    norms = (float(np.linalg.norm(ref)), float(np.linalg.norm(act)))
    if 0.0 in norms:
        return math.inf if norms == (0.0, 0.0) else 0.0
    apart = ref / norms[0] - act / norms[1]
    return _decibel(1.0, float(apart @ apart) / 2)


def max_error(reference: Array, actual: Array) -> float:
    """Returns the largest absolute difference, inf where either side is not finite."""
    ref, act = _pair(reference, actual)
    return float(np.abs(ref - act).max()) if _finite(ref, act) else math.inf


def worst_row_snr_db(reference: Array, actual: Array) -> float:
    """Returns the smallest SNR in dB over the rows (last axis) of the two arrays."""
    rows = zip(reference.reshape(-1, reference.shape[-1]), actual.reshape(-1, actual.shape[-1]), strict=True)
    return min(snr_db(ref, act) for ref, act in rows)


def kl_divergence(reference: Array, actual: Array) -> float:
    """Returns KL(softmax(reference) ‖ softmax(actual)) in nats, for two rows of logits (V,)."""
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return math.inf
    log_p, log_q = _log_softmax(ref), _log_softmax(act)
    return max(0.0, float(np.exp(log_p) @ (log_p - log_q)))  # rounding may leave −1e-17 for equal rows


def probabilities(logits: Array) -> NDArray[np.float64]:
    """Returns softmax of logits (V,); all NaN where one is not finite."""
    values = logits.astype(np.float64)
    if not _finite(values):
        return np.full(values.shape, math.nan)
    out: NDArray[np.float64] = np.exp(_log_softmax(values))
    return out


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return out


def margin(logits: Array) -> float:
    """Returns how far the best of logits (V,) stands above the second best."""
    second, first = np.partition(logits.astype(np.float64), -2)[-2:]
    return float(first - second)


def explained_gap(reference: Array, actual: Array) -> float:
    """Returns how far apart two logits of `reference` (V,) may be and still change places by the step's usual error.

    Eight times the RMS error: four for each of the two. The largest error would explain every exchange, since two
    logits never change places without one of them being off by half their gap; the usual one does not explain an
    error that only a few tokens have.
    """
    ref, act = _pair(reference, actual)
    return SWAPPED_BY * math.sqrt(float(np.mean((ref - act) ** 2)))


def top_overlap(reference: Array, actual: Array, count: int = TOP) -> float:
    """Returns which share of the `count` best of logits (V,) the other side has among its best, too.

    One that is missing counts as there where what stands in its place is within `explained_gap` of it. 0 where a value
    is not finite.
    """
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return 0.0
    mine, theirs = _best(ref, count), _best(act, count)
    instead = [ref[i] for i in theirs if i not in mine]
    lost = [i for i in mine if i not in theirs and ref[i] - min(instead) > explained_gap(ref, act)]
    return 1.0 - len(lost) / len(mine)


def rank(reference: Array, actual: Array) -> int:
    """Returns which place the best of logits (V,) has on the other side, from 1; V where a value is not finite.

    Tokens within `explained_gap` of it do not count as being in front.
    """
    ref, act = _pair(reference, actual)
    if not _finite(ref, act):
        return len(ref)
    best = int(ref.argmax())
    in_front = (act > act[best]) & (ref[best] - ref > explained_gap(ref, act))
    return 1 + int(in_front.sum())


def _best(logits: NDArray[np.float64], count: int) -> list[int]:
    """The places of the `count` largest, best first, the lower place first among equals."""
    kth = len(logits) - min(count, len(logits))
    some = np.flatnonzero(logits >= np.partition(logits, kth)[kth])
    return [int(i) for i in some[np.argsort(-logits[some], kind="stable")][:count]]


@dataclass(frozen=True)
class Difference:
    """One comparison in full, for messages: maximum, mean, SNR, and where it first leaves `tolerance`."""

    maximum: float
    mean: float
    snr_db: float
    first: tuple[int, ...] | None

    def __str__(self) -> str:
        where = "nowhere" if self.first is None else f"first at {list(self.first)}"
        return f"max |Δ| {self.maximum:.3g}, mean |Δ| {self.mean:.3g}, SNR {self.snr_db:.1f} dB, {where}"


def difference(reference: Array, actual: Array, tolerance: float = 0.0) -> Difference:
    """Returns the comparison of two arrays of one shape; `first` is the first index off by more than `tolerance`."""
    ref, act = _pair(reference, actual)
    error = np.abs(ref - act)
    outside = np.flatnonzero(~(error <= tolerance))  # written so that NaN counts as outside
    first = None if not outside.size else tuple(int(i) for i in np.unravel_index(outside[0], reference.shape))
    return Difference(float(error.max()), float(error.mean()), snr_db(reference, actual), first)
