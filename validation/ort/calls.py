"""Calls into onnxruntime, one at a time, on a thread of their own, so that the caller's thread stays awake.

A call does not come back to Python until it is done, seconds later. Waiting for it on another thread lets Ctrl-C
through at once, and lets whoever serves several people stop a call that nobody waits for any more: onnxruntime looks
between two nodes whether it shall go on. A call that ended this way has written nothing that the next one reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from onnxruntime import RunOptions

from fastvlm.errors import ExecutionError, Stopped
from validation.ort.failures import FAILURES, reason
from validation.ort.settings import run_options
from validation.within_memory import within_memory

Result = TypeVar("Result")


class Calls:
    """Runs one call after the other; `stop` may be called from any thread, all else from one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "onnxruntime")
        self._lock = threading.Lock()
        self._stopped = False
        self._running: RunOptions | None = None

    def __call__(self, what: str, call: Callable[[RunOptions], Result], shrink: bool = False) -> Result:
        """Returns what `call` returns; it must pass the options that it is given on to onnxruntime.

        Raises Stopped where a stop was asked for before or meanwhile, ExecutionError (naming `what`) where onnxruntime
        fails. An exception on the caller's own thread, KeyboardInterrupt above all, ends the call too.
        """
        options = run_options(shrink)
        with self._lock:
            self._check(options)
            self._running = options
        future: Future[Result] | None = None
        try:
            with within_memory():
                future = self._thread.submit(call, options)
                return future.result()
        except FAILURES as error:
            self._check(options)
            raise ExecutionError(f"{what} failed in onnxruntime ({reason(error)}); try another build") from error
        finally:
            with self._lock:
                self._running = None
            options.terminate = True
            if future is not None:
                wait((future,))

    def stop(self) -> None:
        """Ends the running call, and every further one, until `resume`."""
        with self._lock:
            self._stopped = True
            if self._running is not None:
                self._running.terminate = True

    def resume(self) -> None:
        """Calls are taken again."""
        with self._lock:
            self._stopped = False

    def _check(self, options: RunOptions) -> None:
        if self._stopped or options.terminate:
            raise Stopped("stopped before the answer was complete, as was asked; ask again")
