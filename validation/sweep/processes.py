"""Workers as processes of this machine: each does one build after the other, and one that is killed is started anew.

A build that ends its process three times is given up: its cases get a row with that error, and the sweep goes on. Each
new attempt takes the cases from the other end, so that one which ends every process costs no other its row.
It does not know what is done: `working` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, Self

from fastvlm.errors import FastVLMError, ProcessError
from validation.children import Child
from validation.sweep.cases import Making

ATTEMPTS = 3
SERVED = "validation.sweep.served:Worker"
Done = tuple[Making, FastVLMError | None]  # None: rows are written, whatever they say


class Processes:
    """`count` workers on this machine; they end with the `with` block, however it is left."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[Child | None] = SimpleQueue()
        self._children: set[Child] = set()
        self._stopped = False
        self._starting = Lock()
        self._pool = ThreadPoolExecutor(count)
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all workers, at once where they are at work; none is started after it, and nothing interrupts it."""
        interrupted: BaseException | None = None
        while True:
            try:
                self._end_all()
                break
            except (KeyboardInterrupt, SystemExit) as again:  # a second Ctrl-C: workers would go on, and be waited for
                interrupted = again
        if interrupted is not None:
            raise interrupted

    def _end_all(self) -> None:
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._starting:
            for child in list(self._children):
                child.close()
        self._pool.shutdown()

    def run(self, place: Path, sweep: str, makings: Sequence[Making], keep: bool) -> Iterator[Done]:
        """Yields each build when it is done with, in whatever order."""
        given: dict[str, Any] = {"place": str(place), "sweep": sweep, "keep": keep}
        waiting = {self._pool.submit(self._do, making, given): making for making in makings}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()

    def _do(self, making: Making, given: dict[str, Any]) -> FastVLMError | None:
        """One build on a free worker; what ended the last attempt where none came through."""
        problem: FastVLMError | None = None
        worker = self._free.get()
        try:
            for _ in range(ATTEMPTS):
                try:
                    worker = worker or self._started()
                    if worker is None:
                        return problem
                    worker.call("work", making=making.as_json(), **given)
                except ProcessError as ended:
                    problem = ended
                    self._end(worker)
                    worker, making = None, replace(making, cases=making.cases[::-1])
                except FastVLMError as told:
                    return told
                else:
                    return None
            return problem
        finally:
            self._free.put(worker)

    def _started(self) -> Child | None:
        """A new worker; None when no more work is wanted."""
        with self._starting:
            if self._stopped:
                return None
            try:
                child = Child(SERVED, "a worker")
            except OSError as problem:
                raise FastVLMError(
                    f"no worker can be started ({problem.strerror}); take fewer with --workers, or free memory"
                ) from problem
            self._children.add(child)
            return child

    def _end(self, child: Child | None) -> None:
        """Clears away what is left of a worker."""
        if child is not None:
            self._children.discard(child)
            child.close()
