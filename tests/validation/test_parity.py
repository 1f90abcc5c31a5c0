"""The decoder's comparison: what is a tie, what is a divergence, and what no size of error may excuse."""

import math

import numpy as np
import pytest

from validation.parity import DecoderParity, EncoderParity, relative_error


def logits(seed=0, size=64):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_equal_logits_are_equal():
    parity = DecoderParity()
    parity.add(logits(), logits())
    assert (parity.ties, parity.divergences, parity.logit_error, parity.kl) == (0, 0, [0.0], [0.0])


def test_two_equal_candidates_may_swap():
    reference = logits()
    first, second = np.argsort(reference)[::-1][:2]
    reference[second] = reference[first] - 0.001
    swapped = reference.copy()
    swapped[second] = reference[first] + 0.001
    parity = DecoderParity()
    parity.add(reference, swapped)
    assert (parity.ties, parity.divergences) == (1, 0)


def test_a_clear_winner_must_not_lose():
    reference = logits()
    reference[3] = reference.max() + 5
    other = reference.copy()
    other[7] = reference[3] + 5
    parity = DecoderParity()
    parity.add(reference, other)
    assert parity.divergences == 1


def test_garbage_is_never_a_tie():
    parity = DecoderParity()
    for seed in range(32):
        parity.add(logits(seed), -logits(seed))
    assert (parity.ties, parity.divergences) == (0, 32)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_diverges(poison):
    bad = logits()
    bad[5] = poison
    parity = DecoderParity()
    parity.add(logits(), bad)
    assert parity.divergences == 1
    assert parity.logit_error == [math.inf]


def test_constant_logits_have_no_spread_to_measure_by():
    flat = np.ones(8, np.float32)
    assert relative_error(0.0, flat) == 0.0
    assert relative_error(0.1, flat) == math.inf


def test_snr_loss_at_the_edges():
    assert EncoderParity(math.inf, math.inf, math.inf, 1.0, math.inf).snr_loss_db == 0.0
    assert EncoderParity(10.0, 10.0, -math.inf, 1.0, 1.0).snr_loss_db == math.inf
    assert EncoderParity(70.0, 40.0, 45.0, 1.0, 40.0).snr_loss_db == 5.0
