"""The comparison itself: a metric that always says "fine" must not survive."""

import math

import numpy as np
import pytest

from validation.metrics import (
    cosine,
    difference,
    kl_divergence,
    margin,
    max_error,
    psnr_db,
    snr_db,
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
    assert cosine(REF, bad) == -1.0


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        snr_db(REF, REF[None])


def test_cosine_ignores_scale_and_sees_direction():
    assert cosine(REF, 7 * REF) == pytest.approx(1.0)
    assert cosine(REF, -REF) == pytest.approx(-1.0)


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
