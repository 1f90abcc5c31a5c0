"""The object that a worker's process serves: light to import, so that a process can be ended soon after its start.

It ends with whoever started it, also in the middle of a build: a sweep that was killed could not end it, and would be
found at work by the next.
It does not know what is done: `working` does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

EVERY = 0.5  # seconds between two looks


class Worker:
    """What `validation.children.serve` makes in the process of a worker."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()

    def work(self, **given: Any) -> None:
        """As `working.work`."""
        self._tell("loading libraries")
        from validation.sweep.working import work

        work(tell=self._tell, **given)


def end_with(parent: int) -> None:
    """Ends this process when its parent is no longer the one given; rows and builds are whole or not there."""
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGKILL)
