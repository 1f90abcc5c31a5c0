"""The table of limits judges, and cannot be talked into passing."""

import math

import pytest

from export.compression.schemes import SCHEMES
from validation.limits import COARSEST_FIRST, CODED, LIMITS, OFFICIAL, TABLE, limits_of, storable, worst


def test_keys_are_unique_and_every_row_gives_a_reason():
    assert len(LIMITS) == len(TABLE)
    assert all(len(limit.reason) > 20 for limit in TABLE)


# rows whose limit is not a multiple of what was measured, and why
FIXED = {
    "encoder.peak": "half of what fp16 can hold",
    "language.peak": "half of what fp16 can hold",
    "audit.code_excess": "the nearest code is exact; what is left is how float32 rounds a weight between two",
    "audit.int8_misfit": "nothing is idle and next to nothing clipped; a table half as large clips 0.8 % at the least",
    "audit.lut6_misfit": "the same; what a fine-tune's odd weights do to a few groups must not alarm",
    "encoder.snr_loss_db": "the design's figure; 3 dB of headroom, since it is the difference of two errors",
    "encoder_blocks.snr_loss_db": "the same for each block",
    "language_blocks.snr_loss_db": "the same for each layer",
    "encoder.cosine_loss_db": "as encoder.snr_loss_db",
    "encoder.worst_token_loss_db": "8 dB of headroom: the difference of two smallest values",
    "state.keys_loss_db": "as encoder.snr_loss_db; 0.1 on 0.5B",
    "state.values_loss_db": "as encoder.snr_loss_db; 0.1 on 0.5B",
    "state.chunking_loss_db": "as encoder.snr_loss_db; 1.5 on 0.5B",
    "language.top5_overlap": "noise is allowed for, so it is exact",
    "language.rank": "noise is allowed for, so it is exact",
    "answer.top5_overlap": "noise is allowed for, so it is exact",
    "answer.rank": "noise is allowed for, so it is exact",
}


COMPRESSED = [
    limit
    for part in ("language", "encoder")
    for scheme in COARSEST_FIRST
    for limit in limits_of({part: {scheme: 3}, "embeddings": "int8"}).values()
    if limit not in TABLE
]


@pytest.mark.parametrize(
    "limit", [*TABLE, *COMPRESSED, *OFFICIAL.values()], ids=lambda limit: f"{limit.key} {limit.limit}"
)
def test_each_limit_is_above_what_was_measured_but_not_far(limit):
    assert limit.holds(limit.measured)
    if (limit.key in FIXED and (limit in TABLE or limit.key in CODED)) or limit.limit == 0:
        return
    if limit.metric == "top5_overlap":  # of five; what is lost counts
        assert 3 <= (1 - limit.limit) / max(1 - limit.measured, 0.1) <= 15
    elif limit.metric.endswith("_db"):
        assert 9.5 <= abs(limit.measured - limit.limit) <= 20
    elif limit.bound == "min":
        assert 10 <= limit.measured - limit.limit <= 20
    else:
        assert 3 <= limit.limit / limit.measured <= 15


def test_a_compressed_build_is_held_to_its_coarsest_scheme():
    mixed = limits_of({"scheme": "mixed", "language": {"int8": 40, "lut6": 1, "fp16": 2}, "encoder": {}})
    assert mixed["language.kl"] == limits_of({"language": {"lut6": 1}})["language.kl"]
    assert mixed["answer.kl"].limit == mixed["language.kl"].limit > LIMITS["language.kl"].limit
    assert mixed["encoder.psnr_db"] == LIMITS["encoder.psnr_db"]
    seeing = limits_of({"language": {}, "encoder": {"int8": 5}})
    assert seeing["language.kl"] == LIMITS["language.kl"]
    assert seeing["answer.kl"].limit > LIMITS["answer.kl"].limit
    assert limits_of({"scheme": "fp16"}) == LIMITS == limits_of({"language": "damaged"})
    rows_alone = limits_of({"language": {}, "encoder": {}, "embeddings": "int8"})
    assert "embeddings.max_error" not in rows_alone
    for key in ("language.kl", "language.kl_step", "language.logit_error", "answer.kl"):
        assert rows_alone[key].limit == limits_of({"language": {"int8": 1}, "embeddings": "int8"})[key].limit


@pytest.mark.parametrize(("part", "key"), [("language", "language.kl"), ("encoder", "encoder.psnr_db")])
def test_no_scheme_is_held_to_the_limits_of_fp16(part, key):
    """A recipe may give any scheme to any layer that can hold it."""
    assert set(COARSEST_FIRST) == set(SCHEMES)
    limits = [limits_of({part: {scheme: 1}})[key].limit for scheme in COARSEST_FIRST]
    looser = sorted(limits, reverse=key == "language.kl")
    assert limits == looser
    assert LIMITS[key].limit not in limits


def test_an_audit_holds_each_scheme_to_rows_of_its_own():
    """The coarsest scheme of a build says nothing of layers that have a finer one."""
    found = limits_of({"language": {"int8": 40, "lut4": 1, "fp16": 2}, "encoder": {"lut6": 3}})
    assert {key for key in found if key in CODED} == {
        "audit.code_excess", "audit.int8_misfit", "audit.int8_snr_db", "audit.lut6_misfit", "audit.lut6_snr_db",
        "audit.lut4_misfit", "audit.lut4_snr_db",
    }  # fmt: skip
    assert not CODED.keys() & limits_of({"language": {"int8": 0}, "embeddings": "int8"}).keys()


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
