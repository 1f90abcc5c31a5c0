"""The reference's half of a comparison: one task ahead, in order, each sum on one thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from validation.reference import Abandoned, one_ahead, transcribe


def test_results_come_in_order_and_at_most_one_is_ahead() -> None:
    begun: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        return number

    with one_ahead() as results:
        for place, result in enumerate(results(lambda stopped, number=number: task(number) for number in range(5))):
            assert result == place
            assert len(begun) <= place + 2
    assert begun == [0, 1, 2, 3, 4]


def test_the_next_task_runs_while_a_result_is_used() -> None:
    started = threading.Event()
    with one_ahead() as results:
        tasks = results([lambda stopped: True, lambda stopped: started.set() or True])
        next(tasks)
        assert started.wait(10)


def test_a_failure_of_the_reference_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError), one_ahead() as results:
        list(results([lambda stopped: 1 // 0]))


def test_the_reference_sums_on_one_thread() -> None:
    before = torch.get_num_threads()
    with one_ahead() as results:
        assert list(results([lambda stopped: torch.get_num_threads()])) == [1]
    assert torch.get_num_threads() == before


def test_who_gives_up_does_not_wait_for_the_work() -> None:
    """The task that runs is told, and ends by itself."""
    ended: list[bool] = []
    started = threading.Event()

    def long(stopped: threading.Event) -> None:
        started.set()
        ended.append(stopped.wait(60))

    def give_up() -> None:
        with one_ahead() as results:
            next(results([lambda stopped: None, long]))
            started.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert ended == [True]


def test_a_transcript_that_nobody_wants_is_not_finished() -> None:
    stopped = threading.Event()

    class Engine:
        steps = 0

        def reset(self) -> None: ...

        def prefill(self, embeds: object) -> None: ...

        def embed(self, ids: object) -> np.ndarray:
            return np.zeros((1, 2), np.float32)

        def decode(self, embed: object) -> np.ndarray:
            self.steps += 1
            if self.steps == 3:
                stopped.set()
            return np.zeros(4, np.float32)

    engine = Engine()
    with pytest.raises(Abandoned):
        transcribe(engine, np.zeros((2, 2), np.float32), 100, stopped)  # type: ignore[arg-type]
    assert engine.steps == 3


def test_an_answer_ends_with_its_stop_id() -> None:
    class Counts:
        said = 0

        def reset(self) -> None: ...

        def prefill(self, embeds: object) -> None: ...

        def embed(self, ids: object) -> np.ndarray:
            return np.zeros((1, 2), np.float32)

        def decode(self, embed: object) -> np.ndarray:
            self.said += 1
            return np.eye(8, dtype=np.float32)[self.said]

    embeds, nobody = np.zeros((2, 2), np.float32), threading.Event()
    assert transcribe(Counts(), embeds, 6, nobody, (3,)).ids == [1, 2, 3]  # type: ignore[arg-type]
    assert transcribe(Counts(), embeds, 6, nobody).ids == [1, 2, 3, 4, 5, 6]  # type: ignore[arg-type]
