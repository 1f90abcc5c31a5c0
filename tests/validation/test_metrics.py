"""The comparison itself: a metric that always says "fine" must not survive."""

import math

import numpy as np
import pytest

from validation.metrics import (
    angle_db,
    difference,
    explained_gap,
    kl_divergence,
    margin,
    max_error,
    psnr_db,
    rank,
    snr_db,
    top_overlap,
    worst_row_snr_db,
)

REF = np.array([3.0, -4.0, 0.0, 1.0], np.float32)


def test_snr_of_known_noise():
    assert snr_db(np.array([10.0]), np.array([9.0])) == pytest.approx(20.0)
    assert snr_db(REF, REF) == math.inf
    assert snr_db(REF, -REF) == pytest.approx(10 * math.log10(1 / 4))


def test_psnr_is_peak_over_rmse():
    noisy = REF + np.array([0.1, -0.1, 0.1, -0.1], np.float32)
    assert psnr_db(REF, noisy) == pytest.approx(20 * math.log10(4.0 / 0.1), abs=1e-3)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_the_worst_result(poison):
    bad = REF.copy()
    bad[2] = poison
    assert snr_db(REF, bad) == -math.inf
    assert psnr_db(REF, bad) == -math.inf
    assert kl_divergence(REF, bad) == math.inf
    assert max_error(REF, bad) == math.inf
    assert angle_db(REF, bad) == -math.inf
    assert top_overlap(REF, bad) == 0.0
    assert rank(REF, bad) == 4


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        snr_db(REF, REF[None])


def test_the_angle_ignores_scale_and_sees_direction():
    assert angle_db(REF, 8 * REF) == math.inf
    assert angle_db(REF, -REF) == pytest.approx(10 * math.log10(1 / 2))  # cosine −1
    assert angle_db(np.array([1.0, 0.0]), np.array([1.0, 1e-9])) == pytest.approx(10 * math.log10(2e18))
    assert angle_db(np.zeros(2), np.zeros(2)) == math.inf
    assert angle_db(REF, np.zeros(4)) == 0.0


def logits(*best):
    """1,000 logits near 0 behind the given ones."""
    return np.array([*best, *np.linspace(-1, -2, 1000 - len(best))])


def test_all_of_the_five_best_are_looked_for():
    reference = logits(9, 8, 7, 6, 5, 4, 3)
    assert top_overlap(reference, reference) == 1.0
    assert top_overlap(reference, logits(5, 6, 7, 8, 9, 4, 3)) == 1.0  # any order
    assert top_overlap(reference, logits(9, 8, 7, 6, 3.5, 4, 3)) == pytest.approx(0.8)
    assert top_overlap(reference, logits(9, 3, 3, 3, 3, 4, 5)) == pytest.approx(0.6)
    assert top_overlap(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 1.0


def test_the_place_of_the_best_token():
    reference = logits(9, 8, 7, 6)
    assert rank(reference, reference) == 1
    assert rank(reference, logits(6.5, 8, 7, 6)) == 3
    assert rank(reference, logits(9, 9, 7, 6)) == 1, "equal is not in front"


def test_noise_may_change_places_and_a_few_tokens_of_their_own_may_not():
    """The same exchange, by an error that all logits have, and by one that these two alone have."""
    reference, noise = logits(9, 8.9, 7, 6, 5, 4.9), np.random.default_rng(0).standard_normal(1000) * 0.05
    exchanged = logits(8.85, 9.05, 7, 6, 4.85, 5.05)
    assert explained_gap(reference, reference + noise) == pytest.approx(0.4, rel=0.1)
    assert (rank(reference, exchanged), top_overlap(reference, exchanged)) == (2, 0.8)
    noise[:6] = 0
    assert (rank(reference, exchanged + noise), top_overlap(reference, exchanged + noise)) == (1, 1.0)


def test_kl_matches_its_definition():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    assert kl_divergence(np.log(p), np.log(q) + 5.0) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert kl_divergence(REF, REF) == 0.0
    assert kl_divergence(REF, REF[::-1]) > 0.1


def test_worst_row_finds_the_one_bad_row():
    ref = np.ones((3, 4), np.float32)
    bad = ref.copy()
    bad[1] *= 0.5
    assert worst_row_snr_db(ref, bad) == pytest.approx(20 * math.log10(2))


def test_margin_is_between_the_two_best():
    assert margin(np.array([1.0, 5.0, 4.5])) == pytest.approx(0.5)


def test_difference_names_the_first_index():
    ref = np.zeros((2, 3), np.float32)
    off = ref.copy()
    off[1, 2] = 0.25
    assert difference(ref, off, 0.1).first == (1, 2)
    assert difference(ref, off, 0.5).first is None
    off[0, 1] = np.nan
    assert difference(ref, off, 0.5).first == (0, 1)
