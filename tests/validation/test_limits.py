"""The table of limits judges, and cannot be talked into passing."""

import math

import pytest

from validation.limits import LIMITS, TABLE, storable, worst


def test_keys_are_unique_and_every_row_gives_a_reason():
    assert len(LIMITS) == len(TABLE)
    assert all(len(limit.reason) > 20 for limit in TABLE)


# rows whose limit is not a multiple of what was measured, and why
FIXED = {
    "encoder.peak": "half of what fp16 can hold",
    "language.peak": "half of what fp16 can hold",
    "encoder.snr_loss_db": "the design's figure; 3 dB of headroom, since it is the difference of two errors",
}


@pytest.mark.parametrize("limit", TABLE, ids=lambda limit: limit.key)
def test_each_limit_is_above_what_was_measured_but_not_far(limit):
    assert limit.holds(limit.measured)
    if limit.key in FIXED or limit.limit == 0:
        return
    if limit.bound == "min":
        assert 10 <= limit.measured - limit.limit <= 20
    else:
        assert 3 <= limit.limit / limit.measured <= 15


def test_bounds_work_both_ways():
    assert LIMITS["encoder.psnr_db"].holds(60.0)
    assert not LIMITS["encoder.psnr_db"].holds(59.9)
    assert LIMITS["language.kl"].holds(5e-5)
    assert not LIMITS["language.kl"].holds(6e-5)


@pytest.mark.parametrize("limit", TABLE, ids=lambda limit: limit.key)
def test_nan_never_passes(limit):
    assert not limit.holds(math.nan)
    assert not worst(limit.key, {"good": limit.limit, "bad": math.nan}).passed


def test_worst_picks_by_the_direction_of_the_bound():
    assert worst("encoder.psnr_db", {"a": 80.0, "b": 61.0}).subject == "b"
    assert worst("language.kl", {"a": 1e-6, "b": 1e-5}).subject == "b"


def test_stored_numbers_have_three_digits():
    assert storable(0.0123456) == 0.0123
    assert storable(math.inf) == "inf"
