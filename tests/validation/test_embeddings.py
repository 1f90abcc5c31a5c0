"""Tables against the checkpoint, block by block: what is exact, what eight bits lose, and what is broken."""

import math

import numpy as np
import pytest
import torch

from export.compression.codes import compress
from export.compression.schemes import SCHEMES
from validation import embeddings
from validation.embeddings import table_error, worst_scaled_row

ROWS, WIDTH = 50, 64


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", 7 * WIDTH)


@pytest.fixture
def table():
    found = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    found[3] = 0.0
    found[4] *= 1e-25  # a token that was never trained: nothing of it is left in fp16
    found[5, 0] = 1e6  # beyond fp16
    return found


def as_int8(table):
    codes = compress(SCHEMES["int8"], torch.from_numpy(table).clamp(-65504, 65504))
    return codes.codes.numpy(), codes.tables["scale"].numpy().reshape(-1).copy()


def test_a_table_rounded_to_fp16_is_exact_and_a_changed_value_is_not(table):
    stored = np.clip(table, -65504, 65504).astype(np.float16)
    assert table_error(table, stored) == 0.0
    stored[-1, -1] += np.float16(1)
    assert table_error(table, stored) == pytest.approx(1, abs=0.01)
    stored[20, 0] = np.nan
    assert math.isnan(table_error(table, stored))


def test_a_row_that_fp16_cannot_hold_is_no_fault_of_eight_bits(table):
    table[5] = table[6]
    row, decibel = worst_scaled_row(table, *as_int8(table))
    assert 38 < decibel < 45
    assert row not in (3, 4)


@pytest.mark.parametrize(("place", "factor"), [(0, -1), (49, 2), (20, math.nan), (20, math.inf)])
def test_a_wrong_scale_is_found_in_its_row(table, place, factor):
    codes, scales = as_int8(table)
    scales[place] *= np.float16(factor)
    row, decibel = worst_scaled_row(table, codes, scales)
    assert row == place
    assert not decibel >= 1.0


def test_swapped_rows_are_found(table):
    codes, scales = as_int8(table)
    codes[[10, 30]] = codes[[30, 10]]
    assert worst_scaled_row(table, codes, scales)[1] < 1.0
