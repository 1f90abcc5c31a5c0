"""The harness of the hostile suites sees every way in which a case can go wrong, and goes on behind it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from ordeal import COUNTS, in_lines, tally, try_all

from fastvlm.errors import CheckpointError


def named() -> None:
    raise CheckpointError("found 1, expected 2; type this")


def panics() -> None:
    class Panic(BaseException):
        pass

    raise Panic("of a library in Rust")


def swallow() -> bytearray:
    return bytearray(64 * 2**20)


CASES = [
    ("passes", lambda: None),
    ("named", named),
    ("asserts", lambda: [][0]),
    ("panics", panics),
    ("dies", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    ("leaves", lambda: os._exit(3)),
    ("exits", sys.exit),
    ("hangs", lambda: time.sleep(60)),
    ("still there", lambda: None),
]
KINDS = ["passed", "named", "crash", "crash", "signal", "signal", "crash", "timeout", "passed"]


def test_every_end_is_told_apart_and_the_next_case_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(COUNTS, str(tmp_path))
    outcomes = try_all(CASES, seconds=1.0)
    assert [outcome.name for outcome in outcomes] == [name for name, _ in CASES]
    assert [outcome.kind for outcome in outcomes] == KINDS
    assert "IndexError" in outcomes[2].detail
    assert "test_ordeal.py" in outcomes[2].detail
    assert "SIGSEGV" in outcomes[4].detail
    bad = tally("of all ends", outcomes, planted=6)
    assert [outcome.kind for outcome in bad] == [kind for kind in KINDS if kind not in ("passed", "named")]
    assert "6 did not hold" in in_lines(bad)
    (kept,) = tmp_path.iterdir()
    record = json.loads(kept.read_text())
    assert (record["row"], record["tried"], record["planted"]) == ("of all ends", len(CASES), 6)
    assert record["kinds"] == {"passed": 2, "named": 1, "crash": 3, "signal": 2, "timeout": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells how much a process takes")
def test_memory_is_seen_where_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = try_all([("small", lambda: None), ("large", swallow), ("small again", lambda: None)], memory=32 * 2**20)
    assert [outcome.kind for outcome in outcomes] == ["passed", "memory", "passed"]


def test_what_a_case_prints_is_told_when_it_dies() -> None:
    def dies() -> None:
        os.write(2, b"the reason\n")
        os._exit(4)

    (outcome,) = try_all([("dies", dies)])
    assert (outcome.kind, outcome.detail) == ("signal", "exit code 4: the reason")
