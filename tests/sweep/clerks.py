"""A worker whose work costs nothing: it writes the row of each case, and ends its process where it is told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvlm.errors import OutputError
from validation.sweep.rows import Row, measured, write_row
from validation.sweep.served import Worker

DEADLY = ".deadly"  # a file NAME.deadly with a number: how many workers die at the build of scheme NAME;
# or the name of pictures: every worker dies at these
EARLY = ".early"  # the same, before any row
PATIENT = ".patient"  # a file of that ending: this build takes longer than anybody waits
TOLD = "attempts"


class Sleeper(Worker):
    """The worker that is served, at a build without end."""

    def work(self, **given: Any) -> None:
        """Waits for whatever ends it."""
        time.sleep(600)


class Clerk:
    """Does what `validation.sweep.working.Worker` does, for the rows alone."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def work(self, place: str, sweep: str, making: dict[str, Any], keep: bool) -> None:
        """Notes the attempt, dies where that is asked for between two rows, and writes what is missing."""
        folder = Path(place)
        with (folder / TOLD).open("a") as told:
            told.write(f"{making['scheme']} {os.getpid()}\n")
        if making["scheme"] == "lut6":
            raise OutputError("no space left")
        self._die(folder / f"{making['scheme']}{EARLY}")
        done = measured(folder, [case["id"] for case in making["cases"]])
        for case in making["cases"]:
            if (folder / f"{case['images']}{DEADLY}").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if case["id"] not in done:
                write_row(folder, result(making, case))
            self._die(folder / f"{making['scheme']}{DEADLY}")
        while (folder / f"{making['scheme']}{PATIENT}").exists():
            time.sleep(0.01)

    def _die(self, orders: Path) -> None:
        if orders.exists() and (left := int(orders.read_text())) > 0:
            orders.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)


def result(making: dict[str, Any], case: dict[str, Any], **more: Any) -> Row:
    """A row with a result that depends on nothing."""
    return {
        "schema": "0.1", "case": case["id"], "build": making["folder"], "checkpoint": making["checkpoint"],
        "image_size": making["image_size"], "scheme": making["scheme"], "target": making["target"],
        "context": making["context"], "images": case["images"], "status": "passed", "bytes": 1000, "kl": 0.1,
        "kl_of": "answer", "pictures": 1, "steps": 4, "questions": 1, "agree": 1, "answered": 0, "build_right": 0,
        "reference_right": 0, "missed": [], "lacking": [],
        "estimates": [{"devices": ["iPhone 15 Pro"], "first_token": 0.5, "tokens_per_second": 10.0, "memory": 10**9,
                       "fits_memory": "yes", "fits_app": True}],
        **more,
    }  # fmt: skip
