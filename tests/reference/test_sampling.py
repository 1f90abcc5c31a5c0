"""Sampling: greedy, the distribution that temperature and top-p promise, seeds, and numbers that cannot work."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastvlm.errors import ExecutionError, UsageError
from fastvlm_ref.sampling import Sampling, choose

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 3.0, 0.5], np.float32)


def drawn(sampling: Sampling, count: int, logits: np.ndarray = LOGITS) -> np.ndarray:
    generator = sampling.generator()
    return np.array([choose(logits, sampling, generator) for _ in range(count)])


def test_greedy_takes_the_first_of_equals() -> None:
    assert set(drawn(Sampling(), 5)) == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    count = 20_000
    seen = np.bincount(drawn(Sampling(temperature, seed=3), count), minlength=LOGITS.size) / count
    weights = np.exp(LOGITS.astype(float) / temperature)
    expected = weights / weights.sum()
    assert np.abs(seen - expected).max() < 4 * math.sqrt(0.25 / count)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    assert set(drawn(Sampling(1.0, 0.35), 200, logits)) == {1}
    assert set(drawn(Sampling(1.0, 0.5), 200, logits)) == {1, 3}
    assert set(drawn(Sampling(1.0, 0.75), 300, logits)) == {1, 2, 3}
    assert set(drawn(Sampling(1.0, 1.0), 500, logits)) == {0, 1, 2, 3}


def test_top_p_renormalises() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    share = (drawn(Sampling(1.0, 0.6), 20_000, logits) == 1).mean()
    assert share == pytest.approx(4 / 7, abs=0.015)


def test_seeds() -> None:
    first = drawn(Sampling(1.0, seed=1), 50)
    assert np.array_equal(first, drawn(Sampling(1.0, seed=1), 50))
    assert not np.array_equal(first, drawn(Sampling(1.0, seed=2), 50))


def test_a_seed_means_the_same_everywhere() -> None:
    logits = np.linspace(-2, 2, 1000, dtype=np.float32)
    assert drawn(Sampling(0.8, 0.9, seed=42), 5, logits).tolist() == [764, 900, 708, 804, 982]


def test_hot_and_cold_extremes() -> None:
    huge = np.array([6e4, -6e4, 5.9e4], np.float32)
    assert set(drawn(Sampling(1e-6), 20, huge)) == {0}
    assert set(drawn(Sampling(1e9), 300, huge)) == {0, 1, 2}
    assert set(drawn(Sampling(1.0), 20, np.array([-np.inf, 0, -np.inf], np.float32))) == {1}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)])
@pytest.mark.parametrize("bad", [[1, math.nan, 2], [-math.inf] * 3, [1, math.inf, 2]])
def test_logits_that_are_no_numbers(sampling: Sampling, bad: list[float]) -> None:
    with pytest.raises(ExecutionError, match="the logits are not numbers"):
        choose(np.array(bad, np.float32), sampling, sampling.generator())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((-1.0,), "--temperature is -1.0"),
        ((math.nan,), "--temperature is nan"),
        ((math.inf,), "--temperature is inf"),
        ((1.0, 0.0), "--top-p is 0.0"),
        ((1.0, 1.1), "--top-p is 1.1"),
        ((1.0, math.nan), "--top-p is nan"),
        ((0.0, 0.9), "--top-p 0.9 does nothing at --temperature 0"),
        ((1.0, 1.0, -1), "--seed is -1"),
    ],
)
def test_numbers_that_cannot_work(arguments: tuple[float, ...], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Sampling(*arguments)
