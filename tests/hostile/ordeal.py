"""Many hostile inputs, each tried in a process that may die of it, and a count of how each ended.

A suite is a list of cases: a name and a function without arguments. `try_all` runs them in a child that is forked after
the imports, one after the other, under limits of time and memory; a case that kills or hangs its child costs that child
alone, and the next one begins behind it. A case holds when it returns or raises a FastVLMError; whatever else it must
show (that a load equals another, that a canary is untouched) it asserts itself: an AssertionError counts as a crash.

Counts of all suites are kept by `tally` where FASTVLM_RELIABILITY names a folder; docs/generate_reliability.py makes
the table of docs/reliability.md of them. FASTVLM_TORTURE=1, set by `make torture`, asks for the long form of each row.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from fastvlm.errors import FastVLMError

Case = tuple[str, Callable[[], object]]
SECONDS = 20.0  # a case that takes longer hangs
MEMORY = 512 * 2**20  # bytes that a case may take beyond what was there before it
LONG = os.environ.get("FASTVLM_TORTURE") == "1"
COUNTS = "FASTVLM_RELIABILITY"
BAD = ("crash", "signal", "timeout", "memory")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Outcome:
    """How one case ended: kind "passed" (it returned), "named" (a FastVLMError), or one of BAD; `detail` in words."""

    name: str
    kind: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        """Whether nothing happened that must not."""
        return self.kind not in BAD

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} after {self.seconds:.1f} s: {self.detail}"


def size(short: int, long: int) -> int:
    """Returns how many cases a row tries in this run."""
    return long if LONG else short


def try_all(cases: Sequence[Case], seconds: float = SECONDS, memory: int = MEMORY) -> list[Outcome]:
    """Returns how every case ended, in order. Nothing that a case does to its process reaches this one."""
    found: list[Outcome] = []
    while len(found) < len(cases):
        found += _one_child(cases[len(found) :], seconds, memory)
    return found


def tally(row: str, outcomes: Sequence[Outcome], **named: int) -> list[Outcome]:
    """Keeps the counts of a row, `named` counts of its own beside them; returns those that did not hold."""
    folder = os.environ.get(COUNTS)
    if folder:
        kinds = Counter(outcome.kind for outcome in outcomes)
        slowest = max((outcome.seconds for outcome in outcomes), default=0.0)
        record = {"row": row, "tried": len(outcomes), "kinds": dict(kinds), "slowest": round(slowest, 2), **named}
        name = "".join(letter if letter.isalnum() else "-" for letter in row)
        file = Path(folder) / f"{name}.{'long' if LONG else 'short'}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    return [outcome for outcome in outcomes if not outcome.held]


def in_lines(outcomes: Sequence[Outcome], most: int = 12) -> str:
    """Returns the first few of them, a line each, for an assertion's message."""
    lines = [str(outcome)[:400] for outcome in outcomes[:most]]
    return "\n".join([f"{len(outcomes)} did not hold:", *lines])


def _one_child(cases: Sequence[Case], seconds: float, memory: int) -> list[Outcome]:
    """Runs cases in one child until it has run them all or has died; returns those that it began."""
    reads, writes = os.pipe()
    with tempfile.TemporaryFile() as said:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads of libraries that sleep
            child = os.fork()
        if not child:
            os.close(reads)
            _work(cases, writes, said.fileno(), memory)
        os.close(writes)
        with os.fdopen(reads, "rb", buffering=0) as line:
            return _follow(cases, child, line.fileno(), seconds, said.fileno())


def _follow(cases: Sequence[Case], child: int, line: int, seconds: float, said: int) -> list[Outcome]:
    """Reads what a child tells, and ends it where a case takes too long."""
    found: list[Outcome] = []
    rest = b""
    begun = time.monotonic()
    while True:
        ready, _, _ = select.select([line], [], [], max(0.0, begun + seconds - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return [*found, Outcome(cases[len(found)][0], "timeout", f"over {seconds:g} s", seconds)]
        part = os.read(line, 65536)
        if not part:
            break
        *lines, rest = (rest + part).split(b"\n")
        for text in lines:
            found.append(Outcome(**json.loads(text)))
            begun = time.monotonic()
    _, status = os.waitpid(child, 0)
    if len(found) < len(cases):
        code = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        spent = time.monotonic() - begun
        found.append(Outcome(cases[len(found)][0], "signal", f"{how}: {_last_line(said)}", spent))
    return found


def _last_line(said: int) -> str:
    text = os.pread(said, 65536, max(0, os.fstat(said).st_size - 65536)).decode("utf-8", "replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def _work(cases: Sequence[Case], writes: int, said: int, memory: int) -> NoReturn:
    """The child: runs case after case, and tells how each ended."""
    faulthandler.disable()  # pytest's would tell of each death on the terminal
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    give_back_free_memory()
    before = _bytes("VmData")
    if before:
        resource.setrlimit(resource.RLIMIT_DATA, (before + memory, resource.RLIM_INFINITY))
    with os.fdopen(writes, "w", encoding="utf-8") as line:
        for case in cases:
            _forget_peak()
            resident = _bytes("VmHWM")
            _tell(line, _tried(case, resident, memory))
    os._exit(0)


def _tried(case: Case, resident: int, memory: int) -> Outcome:
    name, run = case
    start = time.monotonic()
    kind, detail = "passed", ""
    try:
        run()
    except FastVLMError as error:
        kind, detail = "named", f"{type(error).__name__}: {error}"
    except MemoryError as error:
        kind, detail = "memory", f"MemoryError: {error}"
    except BaseException as error:  # a panic of a library in Rust is no Exception
        kind, detail = "crash", f"{type(error).__name__}: {error} {_where(error)}"
    spent = time.monotonic() - start
    if kind in ("passed", "named") and (grown := _bytes("VmHWM") - resident) > memory:
        kind, detail = "memory", f"{grown / 2**20:.0f} MiB"
    return Outcome(name, kind, detail[:600], round(spent, 3))


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""


def _tell(line: TextIO, outcome: Outcome) -> None:
    line.write(json.dumps(vars(outcome)) + "\n")
    line.flush()


def give_back_free_memory() -> None:
    """Returns to the system what is free in this process's heap: what a case takes from there is not seen as taken."""
    gc.collect()
    with suppress(AttributeError):  # a C library that has none
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> None:
    """Lets VmHWM begin anew, so that a case is not charged for those before it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _bytes(field: str) -> int:
    """Bytes of a field of this process's status; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    lines = STATUS.read_text("ascii", "replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
