"""Weights in blocks of rows: nothing is lost at their ends, and work on many cores keeps its order."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from export.compression import blocks


def test_row_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "VALUES", 200)
    monkeypatch.setattr(blocks, "STEP", 16)
    whole = torch.randn(75, 6)
    for size in (1, 5, 96, 97, 192, 450):
        found = list(blocks.row_blocks(iter(whole.half().reshape(-1).split(size)), 6))
        assert [len(block) for block in found] == [32, 32, 11]
        assert torch.equal(torch.cat(found), whole.half().float())


@pytest.mark.parametrize("cores", [1, 3, 500])
def test_results_come_in_order_and_few_items_wait(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cores there are, memory holds the blocks of a few."""
    monkeypatch.setattr(blocks.os, "cpu_count", lambda: cores)
    cores = min(cores, 16)
    taken, used = [], set()

    def items() -> object:
        for number in range(40):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        used.add((threading.get_ident(), torch.get_num_threads()))
        return number * 2

    for done, result in enumerate(blocks.in_order(work, items())):  # type: ignore[type-var]
        assert result == done * 2
        assert len(taken) <= done + cores + 1
    assert done == 39
    assert len({thread for thread, _ in used}) <= cores
    assert {threads for _, threads in used} == {1}


def test_a_fault_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(blocks.in_order(lambda number: 1 // number, [1, 0, 1]))
