"""What a manifest's exponents are called, whoever wrote them."""

from __future__ import annotations

import pytest

from fastvlm.exponents import exponents_in_words, protection_in_words

RECORD = {
    "scanned": [1024, 1152], "residual": 2, "scores": 1, "mlp": [0, 4, 4, 1], "values": [3],
    "encoder": {"network.8.2": 5},
}  # fmt: skip
WORDS = (
    "the residual stream / 2^2, attention scores / 2^1, values of layers 0 / 2^3, MLPs of layers 3 / 2^1, "
    "MLPs of layers 1, 2 / 2^4, network.8.2 / 2^5"
)


def test_every_exponent_is_told() -> None:
    assert exponents_in_words(RECORD) == WORDS
    assert protection_in_words(RECORD) == f"scanned at 1024, 1152 pixels; {WORDS}"
    assert protection_in_words({"scanned": [64]}) == "scanned at 64 pixels; everything fits as it is"


@pytest.mark.parametrize("record", [None, {}, [], "no", {"scanned": []}, {"mlp": [1]}])
def test_a_build_without_a_scan_says_so(record: object) -> None:
    assert protection_in_words(record) == "never scanned: nothing is known of its range"


@pytest.mark.parametrize("record", [{"mlp": "x", "encoder": 3, "residual": "y"}, {"scanned": 5}])
def test_a_record_by_other_hands_breaks_nothing(record: dict[str, object]) -> None:
    assert exponents_in_words(record) == ""
