"""The decoder's comparison: what is a tie, what is a divergence, and what no size of error may excuse."""

import math

import numpy as np
import pytest

from validation.parity import Closeness, DecoderParity, EncoderParity, closeness, loss_db, over_spread


def logits(seed=0, size=64):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_equal_logits_are_equal():
    parity = DecoderParity()
    parity.add(logits(), logits())
    (step,) = parity.steps
    assert (parity.ties, parity.divergences, step.error, step.kl, step.overlap, step.rank) == (0, 0, 0.0, 0.0, 1.0, 1)
    assert not step.differs


def test_two_equal_candidates_may_swap():
    reference = logits()
    first, second = np.argsort(reference)[::-1][:2]
    reference[second] = reference[first] - 0.001
    swapped = reference.copy()
    swapped[second] = reference[first] + 0.001
    parity = DecoderParity()
    parity.add(reference, swapped)
    assert (parity.ties, parity.divergences) == (1, 0)
    (step,) = parity.steps
    assert (step.reference_id, step.package_id, step.tie) == (first, second, True)
    assert step.margin == pytest.approx(0.001 / reference.std(), rel=1e-3)
    assert step.error == pytest.approx(0.002 / reference.std(), rel=1e-3)


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
    (step,) = parity.steps
    assert (step.error, step.overlap, step.rank, step.tie) == (math.inf, 0.0, 64, False)


def test_constant_logits_have_no_spread_to_measure_by():
    flat = np.ones(8, np.float32)
    assert over_spread(0.0, flat) == 0.0
    assert over_spread(0.1, flat) == math.inf


def test_a_loss_at_the_edges():
    assert loss_db(math.inf, math.inf) == 0.0
    assert loss_db(-math.inf, 10.0) == math.inf
    assert loss_db(45.0, 40.0) == 5.0
    assert loss_db(45.0, math.inf) == -math.inf


def test_image_tokens_are_judged_beside_fp16():
    parity = EncoderParity(Closeness(70.0, 40.0, 43.0, 30.0), Closeness(75.0, 45.0, 49.0, 41.0))
    assert (parity.psnr_db, parity.snr_loss_db, parity.cosine_loss_db, parity.worst_token_loss_db) == (70, 5, 6, 11)


def test_one_bad_token_shows_in_the_worst_alone():
    tokens = np.random.default_rng(0).standard_normal((100, 32)).astype(np.float32)
    bad = tokens.copy()
    bad[7] *= 0.5
    found = closeness(tokens, bad)
    assert found.worst_token_db == pytest.approx(20 * math.log10(2))
    assert found.snr_db == pytest.approx(found.worst_token_db + 20, abs=3)
