"""No row of the table sleeps, and no metric that always says "fine" survives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from row_faults import ELSEWHERE, FAULTS, Bench, RowFault

from validation.limits import LIMITS

BY_KEY = {fault.key: fault for fault in FAULTS}


@pytest.fixture
def bench(tiny_build: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tiny_build, monkeypatch)


def test_every_row_of_the_table_has_a_fault() -> None:
    assert len(BY_KEY) == len(FAULTS)
    assert {key for key, limit in LIMITS.items() if limit.quantity not in ELSEWHERE} == set(BY_KEY)
    assert {limit.quantity for limit in LIMITS.values()} >= ELSEWHERE.keys()
    assert all((Path(__file__).parent / name).is_file() for name in ELSEWHERE.values())


def test_without_a_fault_nothing_is_red(bench: Bench) -> None:
    assert bench.red() == set()


# Rows of the answer whose fault, by the same code, turns the language model's row red as well.
TWICE = {f"answer.{metric}" for metric in ("kl_step", "logit_error", "top5_overlap", "rank")}
PLANTED = [pytest.param(fault, id=fault.key, marks=pytest.mark.long if fault.key in TWICE else ()) for fault in FAULTS]


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_turns_its_row_red_and_no_other(bench: Bench, fault: RowFault) -> None:
    fault.plant(bench)
    assert bench.red(fault.steps) == {fault.key} | fault.also


def always(value: Any) -> Any:
    return lambda *_, **__: value


# What measures or judges, the value by which it would call everything fine, and the row that then misses its fault.
SLEEPERS = [
    ("validation.parity.psnr_db", always(math.inf), "encoder.psnr_db"),
    ("validation.parity.snr_db", always(math.inf), "encoder.snr_loss_db"),
    ("validation.parity.angle_db", always(math.inf), "encoder.cosine_loss_db"),
    ("validation.parity.worst_row_snr_db", always(math.inf), "encoder.worst_token_loss_db"),
    ("validation.peaks.torch.aminmax", always((0.0, 0.0)), "encoder.peak"),
    ("validation.parity.kl_divergence", always(0.0), "language.kl"),
    ("validation.parity.kl_divergence", always(0.0), "answer.kl_step"),
    ("validation.parity.max_error", always(0.0), "language.logit_error"),
    ("validation.parity.top_overlap", always(1.0), "language.top5_overlap"),
    ("validation.parity.rank", always(1), "answer.rank"),
    ("validation.parity.Step.differs", False, "language.divergences"),
    ("validation.state_parity.snr_db", always(math.inf), "state.keys_loss_db"),
    ("validation.state_parity.loss_db", always(0.0), "state.chunking_loss_db"),
    ("validation.host_parity.table_error", always(0.0), "embeddings.max_error"),
    ("validation.comparison.differing_fields", always([]), "manifest.differing_fields"),
    ("validation.comparison.differing_bytes", always(0), "preprocess.differing_bytes"),
    ("validation.comparison.differing_ids", always(0), "prompt.differing_ids"),
    ("validation.limits.Limit.holds", always(True), "state.values_loss_db"),
]


ALWAYS = (
    "encoder.snr_loss_db",
    "language.kl",
    "language.divergences",
    "preprocess.differing_bytes",
)  # not only in long
KINDS = [pytest.param(*row, id=row[2], marks=() if row[2] in ALWAYS else pytest.mark.long) for row in SLEEPERS]


@pytest.mark.parametrize(("metric", "fine", "key"), KINDS)
def test_a_metric_that_always_says_fine_misses_the_fault(bench: Bench, metric: str, fine: Any, key: str) -> None:
    """So the test above would fail with such a metric: it is what turns the row red, and nothing else."""
    bench.patch.setattr(metric, fine)
    BY_KEY[key].plant(bench)
    assert key not in bench.red(BY_KEY[key].steps)
