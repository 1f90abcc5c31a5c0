"""Objects that child processes of the tests serve."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from fastvlm.errors import BuildError, MissingBase


class Clerk:
    """Does as it is told, in every way that a process can end."""

    def __init__(self, tell: Callable[[str], None], start: int = 0) -> None:
        if start < 0:
            raise BuildError("a negative start")
        self.total, self._tell = start, tell

    def add(self, number: int) -> int:
        """Keeps a sum, and prints what nobody should take for an answer."""
        self._tell("adding")
        print('{"gave": "noise"}')
        self.total += number
        return self.total

    def echo(self, **given: Any) -> Any:
        """Gives what it got."""
        return given

    def modules(self) -> list[str]:
        """What this process has loaded."""
        return sorted(sys.modules)

    def peak(self) -> int:
        """The largest memory it has had."""
        from validation.memory import peak_bytes

        return peak_bytes()

    def refuse(self) -> None:
        """An error of the project's own."""
        raise BuildError("no such thing")

    def refuse_with_options(self) -> None:
        """An error that is made of more than words."""
        raise MissingBase("a base is missing", ("--base", "X"))

    def fail(self) -> None:
        """A fault of the program."""
        self._tell("failing")
        raise ValueError("a fault")

    def end(self, how: str) -> None:
        """Ends the process."""
        self._tell("ending")
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, how))

    def break_off(self) -> None:
        """Ends in the middle of an answer, as a long one may."""
        self._tell("answering")
        os.write(int(sys.argv[2]), b'{"gave": [1, 2')
        os.kill(os.getpid(), signal.SIGKILL)

    def hang_up(self) -> None:
        """Says no more, and does not end."""
        self._tell("hanging up")
        os.close(int(sys.argv[2]))
        time.sleep(60)

    def sleep(self) -> None:
        """Does not come back for long."""
        self._tell("sleeping")
        time.sleep(60)

    def wait(self, seconds: float) -> None:
        """Comes back after a while."""
        self._tell("waiting")
        time.sleep(seconds)

    def take(self, count: int) -> int:
        """Takes as many bytes for a moment."""
        self._tell("taking")
        return len(bytearray(count))
