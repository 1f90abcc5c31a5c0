"""The reference's half of a comparison: one task ahead, in order, each sum on one thread."""

from __future__ import annotations

import threading

import pytest
import torch

from validation.reference import one_ahead


def test_results_come_in_order_and_at_most_one_is_ahead() -> None:
    begun: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        return number

    with one_ahead() as results:
        for place, result in enumerate(results(lambda number=number: task(number) for number in range(5))):
            assert result == place
            assert len(begun) <= place + 2
    assert begun == [0, 1, 2, 3, 4]


def test_the_next_task_runs_while_a_result_is_used() -> None:
    started = threading.Event()
    with one_ahead() as results:
        tasks = results([lambda: True, lambda: started.set() or True])
        next(tasks)
        assert started.wait(10)


def test_a_failure_of_the_reference_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError), one_ahead() as results:
        list(results([lambda: 1 // 0]))


def test_the_reference_sums_on_one_thread() -> None:
    before = torch.get_num_threads()
    with one_ahead() as results:
        assert list(results([torch.get_num_threads])) == [1]
    assert torch.get_num_threads() == before
