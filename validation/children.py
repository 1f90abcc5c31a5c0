"""An object in a process of its own: its memory is its own, and what ends that process ends nothing else.

Core ML may end the process that calls it, by abort (coremltools#2757) or by SIGKILL (#2758), and a peak of memory or a
first load belongs to one contender only where nobody else was there before.

Notable choices:
- the interpreter is started anew with the import path of this one. A fork would share memory and copy locks that
  others hold; multiprocessing's spawn imports the caller's main module, whose memory would be counted;
- one line of JSON for a call, one for each stage that begins, one for the result. Arrays travel in files;
- a FastVLMError crosses over as itself. Anything else ends the child and is told as ProcessError, with the stage;
- nothing is waited for without end, and where the system can (Linux), a child's memory has a limit too: `Limits`.
It does not know what its objects do.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from fastvlm import errors
from fastvlm.errors import FastVLMError, MissingBase, ProcessError
from validation.within_memory import data_bytes

Tell = Callable[[str], None]  # what an object calls when a stage begins
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from validation.children import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
PATIENCE = 10  # seconds that a child has to end when it is no longer needed
REASONS = {
    "SIGKILL": "the system ended it: memory ran out, or Core ML could not compile it (coremltools#2758)",
    "SIGABRT": "the library that it called gave up (coremltools#2757 is one way)",
}


@dataclass(frozen=True)
class Limits:
    """What a child may take.

    seconds: of one call, after which it is ended; a day is beyond any that measures or converts. memory: bytes of its
    own data beyond what the interpreter has (0: any number); kept on Linux alone.
    """

    seconds: float = 24 * 3600.0
    memory: int = 0


_serving = False  # whether this process is a child


def is_child() -> bool:
    """Whether this process was started by `Child`: what it opens has a process of its own already."""
    return _serving


class Served(Protocol):
    """What answers calls by name, wherever it lives."""

    def call(self, name: str, **given: Any) -> Any:
        """Returns what the method `name` of the object gives; raises its FastVLMError, or ProcessError."""

    def close(self) -> None:
        """Ends it."""


class Child:
    """An object of the class `serves` ("module:Class"), made and called in a process of its own.

    The class is called with `tell` and what is `given`; that, and what its methods take and give, is plain data.
    `name` is what messages call it. Raises as `call` does where the object cannot be made.
    """

    def __init__(self, serves: str, name: str, limits: Limits = Limits(), **given: Any) -> None:
        self.name, self.stage, self.limits = name, "start", limits
        self._busy = False
        here, there = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # what it and its libraries print; a pipe that nobody reads would fill
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        self._process = subprocess.Popen(
            # -I: a json.py in the current folder must not be taken for the library
            [sys.executable, "-I", "-c", START, path, str(there.fileno()), str(limits.memory)],
            pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is this process's to answer
        )  # fmt: skip
        there.close()
        self._line = here
        self._asks = here.makefile("w", encoding="utf-8")
        self._hears = here.makefile("r", encoding="utf-8")
        try:
            self._ask({"serves": serves, "given": given})
        except BaseException:
            self.close()
            raise

    def call(self, name: str, **given: Any) -> Any:
        """As `Served.call`; ProcessError says at which stage the child was, how it ended, or that it took too long."""
        return self._ask({"call": name, "given": given})

    def _ask(self, asked: dict[str, Any]) -> Any:
        self._busy = True
        last = time.monotonic() + self.limits.seconds
        try:
            self._line.settimeout(self.limits.seconds)
            self._asks.write(json.dumps(asked) + "\n")
            self._asks.flush()
            while (text := self._heard(last)).endswith("\n"):  # else it has ended, perhaps in the middle of a word
                answer = json.loads(text)
                if "at" in answer:
                    self.stage = answer["at"]
                    continue
                self._busy = False
                if "error" in answer:
                    raise _error(*answer["error"])
                return answer["gave"]
        except TimeoutError as error:
            self._process.kill()
            raise ProcessError(
                f"{self.name} gave no answer within {self.limits.seconds:g} s at stage {self.stage} and was ended; try "
                "again while the machine is free, or leave it out",
                self.stage, "timeout",
            ) from error  # fmt: skip
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, as at the end of what it says
        raise self._ended()

    def _heard(self, last: float) -> str:
        """The next line that it says, until `last` of the clock; TimeoutError behind that."""
        self._line.settimeout(max(0.001, last - time.monotonic()))
        return self._hears.readline()

    def _ended(self) -> ProcessError:
        """How it ended, in words; the other end of the line is closed."""
        code = self._code()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        reason = REASONS.get(how) or self._last_line() or "it said nothing"
        return ProcessError(f"{self.name} ended by itself ({how}) at stage {self.stage}: {reason}", self.stage, how)

    def _last_line(self) -> str:
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 4096))
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Ends the process: at once where it is still at work."""
        if self._busy:
            self._process.kill()
        for end in (self._asks, self._hears, self._line):
            with suppress(OSError):  # what was not yet sent has no reader any more
                end.close()
        self._code()
        self._said.close()

    def _code(self) -> int:
        """Waits for its end, by force where it says no more and does not end, and returns how it ended."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _error(kind: str, text: str) -> FastVLMError:
    """The error that a child's object raised; one that needs more than words becomes its base."""
    found = getattr(errors, kind, FastVLMError)
    return FastVLMError(text) if found in (MissingBase, ProcessError) else found(text)


def serve(descriptor: int, memory: int = 0) -> None:
    """Answers the calls that come over a socket until its other end is closed: the child's half of `Child`."""
    global _serving
    _serving = True
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a stranger's file may end it, and its memory is nobody's
    if memory and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + memory,) * 2)
    with socket.socket(fileno=descriptor) as line, line.makefile("r") as asks, line.makefile("w") as says:

        def say(**answer: Any) -> None:
            says.write(json.dumps(answer) + "\n")
            says.flush()

        served: Any = None
        for text in asks:
            asked = json.loads(text)
            try:
                if served is None:
                    module, _, name = asked["serves"].partition(":")
                    made = getattr(importlib.import_module(module), name)
                    served, gave = made(lambda stage: say(at=stage), **asked["given"]), None
                else:
                    gave = getattr(served, asked["call"])(**asked["given"])
            except FastVLMError as error:
                say(error=[type(error).__name__, str(error)])
            else:
                say(gave=gave)
